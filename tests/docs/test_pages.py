"""The commands in README.md and SKILL.md do what the pages say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import Unmarked, matches, parse
from tests.docs.world import ROOT, World

PAGES = sorted([ROOT / "README.md", ROOT / "SKILL.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_the_readme(world: World) -> None:
    blocks = parse(ROOT / "README.md")
    assert [block.stays for block in blocks[:2]] == [True, False]
    for block in blocks:
        if block.where:
            world.play(block, "README.md")


def test_the_skill(world: World) -> None:
    world.up("codexctl up --workspace ~/src/app")
    world.device.run("pair", world.url, "--name", "devbox")
    for block in parse(ROOT / "SKILL.md"):
        # Those of a cloud are run by tests/clouds/test_skill.py.
        if block.where and block.where != "cloud":
            world.play(block, "SKILL.md")


def test_the_skill_has_the_front_matter_that_agents_read() -> None:
    text = (ROOT / "SKILL.md").read_text(encoding="utf-8")
    matter = re.match(r"---\nname: ([a-z0-9-]{1,64})\ndescription: (.{1,1024})\n---\n", text)
    assert matter is not None
    assert matter[1] == "codexctl"
    assert ": " not in matter[2], "a plain YAML scalar cannot hold a colon and a space"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"(?s)```.*?\n```", "", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)#\s]+)", text)
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        (["a"], "a\n", True),
        (["a"], "a", True),
        (["a"], "b\n", False),
        (["a"], "a\nb\n", False),
        ([], "", True),
        ([], "a\n", False),
        (["a   b"], "a b\n", True),
        (["NAME  ..."], "NAME    ONLINE\n", True),
        (["a", "...", "d"], "a\nb\nc\nd\n", True),
        (["a", "...", "d"], "a\nd\n", True),
        (["...run..."], "is running now\n", True),
        (["a.c"], "abc\n", False),
        (["a", "..."], "a\n", True),
    ],
)
def test_what_counts_as_equal(expected: list[str], printed: str, equal: bool) -> None:
    assert matches(expected, printed) is equal


def test_a_block_that_says_nothing_about_itself_is_a_fault(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```sh\ntrue\n```\n")
    with pytest.raises(Unmarked, match=r"page\.md:3"):
        parse(page)
    page.write_text(
        "<!-- run: device -->\n```console\n$ a\nb\n$ c\n```\n\n"
        "<!-- shown: it costs money -->\n```sh\n# why\npay\n```\n"
    )
    run, shown = parse(page)
    assert [(c.text, c.expected) for c in run.commands] == [("a", ["b"]), ("c", [])]
    assert (run.where, shown.where, shown.commands[0].text) == ("device", "", "pay")
