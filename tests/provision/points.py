"""Numbered points of a run at which a test can kill the process: CODEXCTL_TEST_KILL=N."""

from __future__ import annotations

import os
import signal

_count = 0


def point(label: str) -> None:
    """Count, write the label to CODEXCTL_TEST_POINTS, and die without a trace at the chosen one."""
    global _count
    _count += 1
    log = os.environ.get("CODEXCTL_TEST_POINTS")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{label}\n")
    if os.environ.get("CODEXCTL_TEST_KILL") == str(_count):
        os.kill(os.getpid(), signal.SIGKILL)
