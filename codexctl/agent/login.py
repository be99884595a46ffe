"""Whether the codex of this machine has the login that its model provider wants.

Asked of the binary itself, by an app-server on stdio that answers one question: the setting of a
provider decides as much as a file with credentials.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time

from codexctl import __version__
from codexctl.agent.codex import Codex

ASK_S = 10.0


def is_logged_in(codex: Codex, variables: dict[str, str]) -> bool | None:
    """None where it does not say within ASK_S. Blocks."""
    lines = (
        {"id": 1, "method": "initialize",
         "params": {"clientInfo": {"name": "codexctl", "version": __version__}}},
        {"method": "initialized"},
        {"id": 2, "method": "account/read", "params": {}},
    )  # fmt: skip
    try:
        process = subprocess.Popen(
            [codex.path, "app-server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables,
            start_new_session=True,
        )
    except OSError:
        return None
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        process.stdin.flush()
        answer = _answer(process.stdout.fileno())
    except OSError:
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdin.close()
        process.stdout.close()
    if not isinstance(answer, dict):
        return None
    return bool(answer.get("account")) or not answer.get("requiresOpenaiAuth")


def _answer(fd: int) -> object:
    """The result of the second call, or None."""
    end = time.monotonic() + ASK_S
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while selector.select(max(0.0, end - time.monotonic())):
            piece = os.read(fd, 65536)
            data += piece
            for line in data.split(b"\n")[:-1]:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if isinstance(message, dict) and message.get("id") == 2:
                    return message.get("result")
            if not piece:
                break
    return None
