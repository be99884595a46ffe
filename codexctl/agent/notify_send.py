"""Send one notice to one target, blocking and bounded in time; `NotSent` says why not.

Used by the daemon in threads of its own, and by `codexctl notify test` as it is.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import signal
import subprocess
import tempfile
from urllib.parse import urlsplit

from codexctl import __version__
from codexctl.agent.notify import Notice
from codexctl.agent.notify_targets import Post, TargetRecord, argv_for, as_json, post_for
from codexctl.errors import CodexctlError

HTTP_S = 10.0
COMMAND_S = 30.0
READ_BYTES = 4096  # of an answer, which only an error message is taken from
TOLD_CHARS = 200


class NotSent(CodexctlError):
    """The target did not take the notice. `for_good`: it said no, and would again."""

    code = "not-sent"

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message, hint="see: codexctl notify list")
        self.for_good = for_good


def send(target: TargetRecord, notice: Notice, host: str) -> None:
    """Deliver, in at most some HTTP_S or COMMAND_S. NotSent says why not."""
    if target.kind in ("ntfy", "webhook"):
        _post(post_for(target, notice, host))
    else:
        argv = argv_for(target, notice, platform.system())
        _run(argv, json.dumps(as_json(notice, host)).encode())


def _post(post: Post) -> None:
    parts = urlsplit(post.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=HTTP_S)
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    headers = {**post.headers, "User-Agent": f"codexctl/{__version__}"}
    where = parts.netloc
    try:
        connection.request("POST", target, post.body, headers)
        with connection.getresponse() as answer:
            text = answer.read(READ_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotSent(f"{where} was not reached: {error or type(error).__name__}") from error
    finally:
        connection.close()
    # A redirect is not followed: the notice would go where nobody has said.
    if not 200 <= answer.status < 300:
        words = " ".join(text.split())[:TOLD_CHARS]
        passing = answer.status in (408, 425, 429) or answer.status >= 500
        raise NotSent(
            f"{where} answered {answer.status} {answer.reason}: {words}".rstrip(": "),
            for_good=not passing,
        )


def _run(argv: list[str], data: bytes) -> None:
    # A file takes what it says: a pipe would be held open by what it leaves behind.
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        except OSError as error:
            raise NotSent(f"{argv[0]} was not started: {error.strerror or error}") from error
        try:
            process.communicate(data, timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            raise NotSent(f"{argv[0]} took more than {COMMAND_S:.0f} s and was ended") from None
        finally:
            if process.poll() is None:
                # Its own session, so that what it has started ends too.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        words = " ".join(said.read(READ_BYTES).decode(errors="replace").split())[:TOLD_CHARS]
    if process.returncode:
        raise NotSent(f"{argv[0]} ended with {process.returncode}: {words}".rstrip(": "))
