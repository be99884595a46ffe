"""Numbered points of a run at which a test can end the process or cut its network.

CODEXCTL_TEST_KILL=N, CODEXCTL_TEST_INTERRUPT=LABEL (as by Ctrl-C), or CODEXCTL_TEST_DROP=N with a
network of network.py. A label does as well as a number; several to drop at have commas between.
"""

from __future__ import annotations

import os
import signal

from tests.provision import network

_count = 0
_dropped: set[str] = set()


def point(label: str) -> None:
    """Count, write the label to CODEXCTL_TEST_POINTS, and die without a trace at the chosen one."""
    global _count
    _count += 1
    log = os.environ.get("CODEXCTL_TEST_POINTS")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{label}\n")
    if os.environ.get("CODEXCTL_TEST_KILL") in (str(_count), label):
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("CODEXCTL_TEST_INTERRUPT") == label:
        os.kill(os.getpid(), signal.SIGINT)
    wanted = {str(_count), label} & set(os.environ.get("CODEXCTL_TEST_DROP", "").split(","))
    if wanted - _dropped:
        _dropped.update(wanted)
        network.ask("drop")
