"""environments.toml gets an entry and keeps everything else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.cli.env_toml import environment_id, write_environment
from codexctl.errors import StateError, UsageError

OTHERS = """\
# my machines
default = "old"   # for now
include_local = true

[[environments]]
id = "old"
url = "ws://127.0.0.1:9" # by hand

# the big one
[[environments]]
id = "devbox"
url = "ws://127.0.0.1:10"
initialize_timeout_sec = 30 # slow
"""


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODEXCTL_HOME", raising=False)


def write(path: Path, name: str, **more: Any) -> dict[str, Any]:
    return write_environment(str(path), name, **{"folder": None, "make_default": False, **more})


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "codex" / "environments.toml"
    done = write(path, "devbox", folder=str(tmp_path))
    assert (done["default"], done["changed"]) == ("devbox", True)
    value = tomllib.loads(path.read_text())
    (entry,) = value["environments"]
    assert value["default"] == entry["id"] == "devbox"
    assert entry["args"][-4:] == ["exec-server", "devbox", "--folder", str(tmp_path)]
    assert Path(entry["program"]).is_absolute()
    before = path.read_bytes()
    assert not write(path, "devbox", folder=str(tmp_path))["changed"]
    assert path.read_bytes() == before


def test_what_else_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "environments.toml"
    path.write_text(OTHERS)
    done = write(path, "devbox")
    assert done["default"] == "old"
    text = path.read_text()
    for comment in ("# my machines", "# for now", "# by hand", "# the big one", "# slow"):
        assert comment in text
    old, devbox = tomllib.loads(text)["environments"]
    assert old == {"id": "old", "url": "ws://127.0.0.1:9"}
    assert sorted(devbox) == ["args", "id", "initialize_timeout_sec", "program"]
    assert write(path, "second", make_default=True)["default"] == "second"
    value = tomllib.loads(path.read_text())
    assert (value["default"], value["include_local"]) == ("second", True)
    assert [entry["id"] for entry in value["environments"]] == ["old", "devbox", "second"]


def test_a_file_with_entries_and_no_default(tmp_path: Path) -> None:
    path = tmp_path / "environments.toml"
    path.write_text('[[environments]]\nid = "a"\nurl = "ws://127.0.0.1:1"\n')
    assert write(path, "b")["default"] == "b"
    value = tomllib.loads(path.read_text())
    assert value["default"] == "b"
    assert [entry["id"] for entry in value["environments"]] == ["a", "b"]


def test_the_home_of_this_identity_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "environments.toml"
    monkeypatch.setenv("CODEXCTL_HOME", str(tmp_path / "other"))
    write(path, "b")
    (entry,) = tomllib.loads(path.read_text())["environments"]
    assert entry["env"] == {"CODEXCTL_HOME": str(tmp_path / "other")}
    monkeypatch.delenv("CODEXCTL_HOME")
    write(path, "b")
    assert "env" not in tomllib.loads(path.read_text())["environments"][0]


@pytest.mark.parametrize("text", ["environments = 1\n", "environments = [\n", "[environments]\n"])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "environments.toml"
    path.write_text(text)
    with pytest.raises(StateError):
        write(path, "b")
    assert path.read_text() == text


def test_names() -> None:
    assert environment_id("my.box") == "my-box"
    with pytest.raises(UsageError, match="keeps the name"):
        environment_id("local")


NAMES = st.text("ab-_", min_size=1, max_size=4)


@given(st.lists(NAMES, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_any_order_of_hosts_gives_each_one_entry(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("toml") / "environments.toml"
    for name in names:
        write(path, name)
    value = tomllib.loads(path.read_text())
    assert [e["id"] for e in value["environments"]] == list(dict.fromkeys(names))
    assert value["default"] == names[0]
