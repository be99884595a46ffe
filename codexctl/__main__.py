"""The program's start: answers `--version` before it imports anything, else calls the cli."""

from __future__ import annotations

import os
import sys

from codexctl import __version__


def main() -> None:
    argv = sys.argv[1:]
    if argv == ["--version"]:
        sys.stdout.write(f"codexctl {__version__}\n")
        return
    _fill_standard_descriptors()
    from codexctl.cli.main import run

    sys.exit(run(argv))


def _fill_standard_descriptors() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed, as ssh does.

    Else the next socket would get its number, and be read as stdin or written to as stdout.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - it lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - likewise


if __name__ == "__main__":
    main()
