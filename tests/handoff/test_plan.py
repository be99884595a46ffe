"""What is said before a handoff begins; the journal's rules; where a folder may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from codexctl.agent.handoff import core, target
from codexctl.agent.handoff.core import SourceRecord, TargetRecord
from codexctl.agent.handoff.journal import SOURCE, TARGET, Journal, check_may_act
from codexctl.agent.handoff.rollout import check_relative
from codexctl.agent.handoff.tools import missing, wanted
from codexctl.cli.thread_handoff import plan_text
from codexctl.client.handoff import Plan
from codexctl.errors import ProtocolError, Refused
from codexctl.paths import Home
from tests.handoff.trees import write

THREAD = "01a1fdbd-06b2-7c82-a608-cf66a96f8c08"
PEER = {"name": "there", "kind": "host", "id": "x"}


def plan(**changes: Any) -> Plan:
    survey = {
        "changed": 1, "untracked": 2, "size": 1 << 20, "left_more": 0, "lfs": 1,
        "left": [{"path": "auth.json", "why": "its name is that of a credential"}],
        "submodules": [
            {"path": "lib", "recorded": "1" * 40, "checked_out": "2" * 40, "changed": True}
        ],
    }  # fmt: skip
    source = {
        "thread": THREAD, "name": "fix", "host": "here", "cwd": "/w/app", "codex": "0.169.0",
        "provider": "openai", "bypass": True, "active": True, "survey": survey,
        "approvals": [{"id": "a1", "kind": "command"}], "instructions": {"AGENTS.md": "1"},
        "tools": {"cargo": "Cargo.toml", "make": "Makefile"},
        "snapshot": {"branch": "refs/heads/main", "head": "3" * 40, "stashes": []},
    }  # fmt: skip
    there = {
        "host": "there", "place": "/v/app", "codex": "0.170.1", "providers": ["openai"],
        "logged_in": True, "free": 1 << 40, "clone": "/v/clone", "instructions": {},
        "git_lfs": True,
    }  # fmt: skip
    return Plan(source, {**there, **changes}, {"bundle": 1000, "rollout": 2000})


def test_everything_that_a_person_should_know_is_said() -> None:
    text = plan_text(plan())
    for words in (
        "here:/w/app -> there:/v/app", "main at 3333333333", "1 changed, 2 untracked",
        "stays here: auth.json", "submodule: lib at 2222222222 (recorded 1111111111)",
        "changes that stay here", "a turn runs", "waits for a person: a1",
        "builds on: there:/v/clone",
        "AGENTS.md: here alone", "safe modes",
    ):  # fmt: skip
        assert words in text
    assert "in the way" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"providers": ["other"]}, "no model provider openai"),
        ({"logged_in": False}, "codex login"),
        ({"free": 1 << 20}, "the disk there has 1 MiB free"),
    ],
)
def test_what_is_in_the_way_is_said_first(change: dict[str, Any], words: str) -> None:
    (obstacle,) = plan(**change).obstacles()
    assert words in obstacle
    assert obstacle in plan_text(plan(**change))


def test_what_the_other_side_lacks_is_said() -> None:
    lacks = plan(codex="0.99.0", git_lfs=False, missing_tools=["cargo"]).lacks()
    assert "cargo, which Cargo.toml asks for, is not on the PATH there" in lacks
    assert not any("make" in text for text in lacks)
    assert any("older (0.99.0, here 0.169.0)" in text for text in lacks)
    assert any("git-lfs is not installed" in text for text in lacks)
    assert not any("older" in text for text in plan(codex="0.169.1").lacks())


def test_tools_are_told_by_the_files_that_ask_for_them(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, tools in ((here, ("cargo", "make", "go")), (there, ("make",))):
        folder.mkdir()
        for tool in tools:
            write(folder, tool, "", 0o755)
    for name in ("Cargo.toml", "Makefile", "uv.lock"):
        write(tmp_path, name, "")
    asked = wanted(str(tmp_path), str(here))
    assert asked == {"cargo": "Cargo.toml", "make": "Makefile"}
    assert missing(asked, str(there)) == ["cargo"]
    assert missing(asked, str(here)) == []
    # What another host says is not looked for under any name.
    assert missing({"../../etc/passwd": "x"}, str(there)) == missing(None, str(there)) == []


def test_a_disk_that_filled_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10 << 20))
    with pytest.raises(Refused, match="10 MiB free"):
        target._need_room(str(tmp_path / "new" / "folder"), {"bundle": {"size": 1}})


def source(state: str, id: str = "h1") -> SourceRecord:
    return SourceRecord(id, THREAD, state, "c", "u", "l")


def arrived(state: str, id: str) -> TargetRecord:
    return TargetRecord(id, THREAD, state, "r")


def test_a_thread_acts_where_the_journal_lets_it(tmp_path: Path) -> None:
    home = Home(str(tmp_path))
    check_may_act(home, THREAD)
    with Journal(home) as journal:
        journal.begin(SOURCE, source(core.FROZEN), {"peer": PEER})
    with pytest.raises(Refused, match="being handed off to there"):
        check_may_act(home, THREAD)
    with Journal(home) as journal, pytest.raises(Refused, match="under way"):
        journal.begin(SOURCE, source(core.FROZEN, "h2"), {"peer": PEER})
    with Journal(home) as journal:
        journal.write(SOURCE, source(core.UNDONE), {"peer": PEER})
    check_may_act(home, THREAD)
    with Journal(home) as journal:
        journal.begin(SOURCE, source(core.RETIRED, "h3"), {"peer": PEER})
        journal.begin(TARGET, arrived(core.DISCARDED, "h4"), {"peer": PEER})
    with pytest.raises(Refused, match="has moved to there"):
        check_may_act(home, THREAD)
    with Journal(home) as journal:
        journal.begin(TARGET, arrived(core.READY, "h5"), {"peer": PEER})
    with pytest.raises(Refused, match="is arriving from there"):
        check_may_act(home, THREAD)
    with Journal(home) as journal:
        journal.write(TARGET, arrived(core.OWNED, "h5"), {"peer": PEER})
    check_may_act(home, THREAD)
    with Journal(home) as journal:
        told = [row.public() for row in journal.rows(THREAD)]
    assert "seal" not in str(told)
    assert [row["state"] for row in told] == ["owned", "discarded", "retired", "undone"]


@pytest.mark.parametrize(
    "path",
    [
        f"../rollout-{THREAD}.jsonl",
        f"/etc/rollout-{THREAD}.jsonl",
        f"2026/11/21/../rollout-{THREAD}.jsonl",
        f"2026/11/21/rollout-x{THREAD}.json",
        "2026/11/21/rollout-of-another.jsonl",
        f"config.toml/{THREAD}",
    ],
)
def test_a_rollout_goes_nowhere_else(path: str) -> None:
    with pytest.raises(ProtocolError):
        check_relative(path, THREAD)
    good = f"2026/11/21/rollout-2026-11-21T10-53-06-{THREAD}.jsonl"
    assert check_relative(good, THREAD) == good
