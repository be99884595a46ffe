"""The program's start: answers `--version` before it imports anything, else calls the cli."""

from __future__ import annotations

import sys

from codexctl import __version__


def main() -> None:
    argv = sys.argv[1:]
    if argv == ["--version"]:
        sys.stdout.write(f"codexctl {__version__}\n")
        return
    from codexctl.cli.main import run

    sys.exit(run(argv))


if __name__ == "__main__":
    main()
