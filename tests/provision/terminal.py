"""codexctl on a terminal of its own, with somebody who answers its questions."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

from tests.provision.conftest import World
from tests.support.needs import missing

TIMEOUT_S = 90


def typed(world: World, answers: list[tuple[str, str]], *args: str, **env: str) -> tuple[int, str]:
    """(exit status, all that was shown); each answer is typed when its question is shown."""
    if shutil.which("setsid") is None:
        missing("setsid of util-linux")
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "tests.provision.killable", *args],
        env={**world.env, "TERM": "dumb", **env},
        cwd=world.folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said, seen, end = "", 0, time.monotonic() + TIMEOUT_S
    left = list(answers)
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                data = os.read(ours, 4096)
            except OSError:
                break  # nobody has the other end any more
            said += data.decode(errors="replace")
            while left and (found := re.search(left[0][0], said[seen:])):
                seen += found.end()
                os.write(ours, f"{left.pop(0)[1]}\n".encode())
        status = process.wait(TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    if left:
        pytest.fail(f"was not asked {left[0][0]!r}: {said}")
    # setsid says a signal as a shell does.
    return status, said
