"""`./dev bench [names]`: measure, print the table, keep it in benchmarks/RESULTS.md.

Names choose modules (relay, sessions, provision); without any all run. Nothing here is a test: the
machine's speed moves, only ratios of one run mean something.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks.row import Row

MODULES = ("sessions", "relay", "provision", "threads", "official", "handoff")
RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> int:
    chosen = sys.argv[1:] or list(MODULES)
    unknown = [name for name in chosen if name not in MODULES]
    if unknown:
        sys.stderr.write(f"no benchmark is called {unknown[0]}; there are {', '.join(MODULES)}\n")
        return 2
    rows: list[Row] = []
    for name in chosen:
        print(f"measuring {name} …", file=sys.stderr)
        rows += importlib.import_module(f"benchmarks.{name}").rows()
    table = render(rows)
    print(table)
    if not sys.argv[1:]:
        RESULTS.write_text(document(table))
    return 0


def render(rows: list[Row]) -> str:
    lines = ["| metric | measured | must | aim | |", "|---|---|---|---|---|"]
    for row in rows:
        value = f"{row.value:.2f}" if row.value < 100 else f"{row.value:.0f}"
        cells = (row.metric, f"{value} {row.unit}".strip(), row.must, row.aim, verdict(row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(row: Row) -> str:
    """Which of `must` and `aim` the value reaches, in words."""
    if not row.must:
        return ""
    return (
        "aim" if holds(row.value, row.aim) else "must" if holds(row.value, row.must) else "MISSED"
    )


def holds(value: float, bound: str) -> bool:
    sign, _, number = bound.partition(" ")
    return {
        ">=": value >= float(number),
        "<=": value <= float(number),
        "<": value < float(number),
    }[sign]


def document(table: str) -> str:
    cpu = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor() or "unknown processor",
    )
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        "# Results\n\n"
        "Written by `./dev bench`: medians of one interleaved run on loopback. Absolute figures\n"
        "move with the machine and its neighbours; the ratios are what counts.\n\n"
        f"{when}, {os.cpu_count()} cores of {cpu}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}.\n\n{table}\n"
    )


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
