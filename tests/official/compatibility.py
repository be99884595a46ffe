"""Run the four ways with several official releases, and write docs/compatibility.md from it.

    ./dev compatibility

The newest release is what npm calls latest (the pinned one where npm does not answer); the older
ones are pinned, so that a run is repeatable.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGE = "@openai/codex"
OLDER = ("0.166.0", "0.160.1")
WAYS = {
    "way_1": "1 executor",
    "way_2": "2 agent and executor",
    "way_3": "3 agent on a host",
    "way_4": "4 terminal UI",
}
SCRIPT = "tests/official/test_four_ways.py"
BEGIN, END = "<!-- begin: written by ./dev compatibility -->", "<!-- end -->"
NPM_S = 600.0
RUN_S = 900.0


def pinned() -> str:
    """The release that all other tests use, as ./dev installs it."""
    found = re.search(r"^CODEX_VERSION=(\S+)$", (ROOT / "dev").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def newest() -> str:
    """What npm calls latest; the pinned one where it does not answer."""
    try:
        done = subprocess.run(
            ["npm", "view", PACKAGE, "version"],
            capture_output=True, text=True, timeout=NPM_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return pinned()
    return done.stdout.strip() or pinned()


def install(version: str) -> Path:
    """The codex of a release, installed once beside the environment of the tests."""
    folder = ROOT / ".venv" / ("codex" if version == pinned() else f"codex-{version}")
    codex = folder / "node_modules" / ".bin" / "codex"
    if not codex.exists():
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder),
             f"{PACKAGE}@{version}"],
            timeout=NPM_S, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return codex


def try_ways(codex: Path) -> dict[str, bool]:
    """Which ways pass with this binary."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", SCRIPT,
             f"--junit-xml={report}"],
            cwd=ROOT, env={**os.environ, "CODEXCTL_TEST_CODEX": str(codex)},
            timeout=RUN_S, check=False,
        )  # fmt: skip
        cases = list(ElementTree.parse(report).iter("testcase"))
    passed = {str(case.get("name")) for case in cases if len(case) == 0}
    return {way: any(f"test_{way}_" in name for name in passed) for way in WAYS}


def table(results: dict[str, dict[str, bool]]) -> str:
    """The table of the page, newest release first."""
    lines = [
        "| official release | " + " | ".join(WAYS.values()) + " |",
        "|---|" + "---|" * len(WAYS),
    ]
    for version, ways in results.items():
        cells = ("works" if ways[way] else "**fails**" for way in WAYS)
        lines.append(f"| {version} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    versions = dict.fromkeys((newest(), *OLDER))
    results = {version: try_ways(install(version)) for version in versions}
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}"
    PAGE.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{table(results)}\n")
    return 0 if all(all(ways.values()) for ways in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
