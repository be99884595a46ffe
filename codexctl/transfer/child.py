"""The host's end of a copy as a process of its own, so that the sandbox decides what it reaches.

    python -c CODE '{"op": "read", "paths": […]}'
    python -c CODE '{"op": "write", "path": …, "many": false}'

It speaks the file protocol on stdin and stdout and writes its summary as one JSON line to stderr.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
from typing import Any

from codexctl.errors import CodexctlError, Interrupted
from codexctl.transfer.receiver import Receiver
from codexctl.transfer.sender import Sender
from codexctl.transfer.source import expand_sources, walk
from codexctl.transfer.target import Target
from codexctl.wire.files import error_frame

READ_BYTES = 256 * 1024
PIPE_BYTES = 1 << 20  # fewer turns between the child and the host

Party = Sender | Receiver

# What the host starts, with the folder of the package as the first argument. No site, no
# environment: nothing of the workspace is imported.
CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from codexctl.transfer.child import main; sys.exit(main(sys.argv[2]))"
)


def main(request: str) -> int:
    """Copy as `request` says; 0 when it went through, perhaps without some of the files."""
    for fd in (0, 1):
        os.set_blocking(fd, False)
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except (OSError, AttributeError):
            continue  # a socket, another system, or the person's allowance is used up
    party: Party | None = None
    told: dict[str, Any] = {"failed": 0}
    try:
        party = open_party(json.loads(request))
        pump(party, 0, 1)
    except (CodexctlError, OSError) as error:
        told["reason"] = str(error)
        if isinstance(error, CodexctlError):
            _tell(error)
    finally:
        if party is not None:
            party.close()
            told.update(party.summary.counts(), failed=party.summary.failures)
        sys.stderr.write(json.dumps(told))
    return 0 if "reason" not in told else 1


def open_party(request: dict[str, Any]) -> Party:
    """The side of the protocol that a request asks for. CodexctlError where it cannot begin."""
    if request["op"] == "read":
        return Sender(walk(expand_sources(request["paths"])))
    return Receiver(Target.open(request["path"], many=request["many"]))


def pump(party: Party, read_fd: int, write_fd: int) -> None:
    """Carry bytes between a party and two non-blocking descriptors until it has finished.

    What comes in is always read first, so that two ends never wait for each other to read.
    Interrupted where the other side is gone.
    """
    waiting = memoryview(b"")
    while not party.finished or waiting:
        produced: bytes | None = None
        if not waiting:
            produced = party.produce()
            waiting = memoryview(produced or b"")
            if party.finished and not waiting:
                return
        busy = produced is not None and not produced
        readable, writable, _ = select.select(
            [read_fd], [write_fd] if waiting else [], [], 0 if busy else None
        )
        if writable:
            waiting = waiting[os.write(write_fd, waiting) :]
        if readable:
            data = os.read(read_fd, READ_BYTES)
            if not data:
                raise Interrupted("the other side is gone")
            party.feed(data)


def _tell(error: CodexctlError) -> None:
    """The last frame. A reader that is gone already has no use for it."""
    data = error_frame(error)
    try:
        os.set_blocking(1, True)
        while data:
            data = data[os.write(1, data) :]
    except OSError:
        return
