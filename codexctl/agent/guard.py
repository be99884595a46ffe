"""`python -m codexctl.agent.guard FOLDER COMMAND…`: keeps an app-server over a daemon's restart.

The guard listens on FOLDER/guard.sock, goes into the background and starts COMMAND in its group,
which is that of the process that was started. A daemon holds a connection to it for as long as it
lives. When none has been held for LONELY_S, or the last one said `end`, or COMMAND has ended, the
whole group ends and the folder goes.

It is a process of its own because an approval that waits for a person lives in the app-server: were
that to end with the daemon, so would the turn.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

LONELY_S = 300.0  # for a daemon to come back
END_S = 5.0  # between SIGTERM and SIGKILL
LOOK_S = 1.0
SOCKET = "guard.sock"
END = b"end"


def main(folder: str, command: list[str]) -> None:
    """Until the app-server ends, or has to; this process ends with it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.path.join(folder, SOCKET))
    listener.listen()
    if os.fork():
        os._exit(0)  # who started this learns that it listens, and has no child to look after
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait(listener, process)
    finally:
        _end(process, folder)


def _wait(listener: socket.socket, process: subprocess.Popen[bytes]) -> None:
    held: set[socket.socket] = set()
    lonely_since = time.monotonic()
    while process.poll() is None:
        # A child that ends wakes nobody here, so it is looked at now and then.
        ready, _, _ = select.select([listener, *held], [], [], LOOK_S)
        for one in ready:
            if one is listener:
                held.add(listener.accept()[0])
                continue
            said = one.recv(16)
            if said == END:
                return
            if not said:
                held.discard(one)
                one.close()
        if held:
            lonely_since = time.monotonic()
        elif time.monotonic() - lonely_since > LONELY_S:
            return


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """End the whole group: npm's codex is a script that has the real one as its child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # this process too


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
