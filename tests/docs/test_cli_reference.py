"""docs/cli.md says what `--help` says."""

from __future__ import annotations

from tests.docs.cli_reference import PATH, render


def test_the_page_of_commands_is_current() -> None:
    # Not ==, whose difference would be printed as a whole.
    current = PATH.read_text(encoding="utf-8") == render()
    assert current, "docs/cli.md is behind the help texts: run ./dev docs"
