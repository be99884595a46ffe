"""AGENTS.md: which files hold, in which order, and what is told of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codexctl.host.agents_md import find_agents_md


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_from_the_global_one_to_the_folders(tmp_path: Path) -> None:
    codex = tmp_path / "codex"
    root = tmp_path / "repo"
    write(codex / "AGENTS.md", "Everywhere\n")
    write(tmp_path / "AGENTS.md", "# Above the repository\n")
    write(root / ".git" / "HEAD", "")
    write(root / "AGENTS.md", "text first\n\n## The root ##\n")
    write(root / "a" / "AGENTS.md", "  \n")
    write(root / "a" / "b" / "AGENTS.md", "# Plain\n")
    write(root / "a" / "b" / "AGENTS.override.md", "```\n# no heading\n```\n# Override\n")
    found = find_agents_md(str(root / "a" / "b"), str(codex))
    assert [(os.path.relpath(d.path, tmp_path), d.heading) for d in found] == [
        ("codex/AGENTS.md", ""),
        ("repo/AGENTS.md", "The root"),
        ("repo/a/b/AGENTS.override.md", "Override"),
    ]
    assert found[0].size == 11


def test_without_a_repository_only_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies above the test's own folder is the machine's: /tmp/.git may exist.
    exists = os.path.lexists
    inside = str(tmp_path)
    monkeypatch.setattr(os.path, "lexists", lambda path: path.startswith(inside) and exists(path))
    write(tmp_path / "AGENTS.md", "# Above\n")
    write(tmp_path / "a" / "AGENTS.md", "# Here\n")
    found = find_agents_md(str(tmp_path / "a"), str(tmp_path / "none"))
    assert [document.heading for document in found] == ["Here"]


def test_odd_files_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "AGENTS.md")
    (tmp_path / "AGENTS.override.md").mkdir()
    assert find_agents_md(str(tmp_path), str(tmp_path)) == []
    (tmp_path / "AGENTS.md").unlink()
    (tmp_path / "AGENTS.md").write_bytes(b"# \xff" + b"x" * 100_000)
    found = find_agents_md(str(tmp_path), "/nowhere")
    assert found[0].size == 100_003
    assert len(found[0].heading) == 200
