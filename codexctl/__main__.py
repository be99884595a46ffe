"""The program's start; codexctl/cli/main.py keeps it cheap, and mends closed standard streams."""

from __future__ import annotations

import sys

from codexctl.cli.main import run


def main() -> None:
    sys.exit(run(sys.argv[1:], ends_process=True))


if __name__ == "__main__":
    main()
