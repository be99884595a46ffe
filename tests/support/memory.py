"""What a process had in memory."""

from __future__ import annotations

import os
from pathlib import Path


def peak_kib(pid: int | None = None) -> int:
    """The most that a process (this one) ever had, in KiB; 0 where the system does not tell.

    Not ru_maxrss: that begins at the peak of the process that started it.
    """
    try:
        lines = Path("/proc", str(pid or os.getpid()), "status").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
