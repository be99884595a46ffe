"""The list of paired hosts: names, replacements, secrets, bad files."""

from __future__ import annotations

from pathlib import Path

import pytest

from codexctl.client.names import host_names
from codexctl.client.store import HostRecord, HostStore
from codexctl.errors import StateError, UsageError
from codexctl.paths import Home
from codexctl.secret import Secret

RECORD = HostRecord(
    name="box",
    environment_id="e1",
    own_name="devbox",
    host_key=bytes(32),
    suite="s",
    relay="http://127.0.0.1:1",
    pin=None,
    token=Secret("hidden-token"),
    token_expires_at=5,
    device_id="d",
    scopes=("exec", "view"),
    paired_at=1,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


def test_a_home_without_hosts_gets_no_file(home: Home) -> None:
    store = HostStore(home)
    assert store.all() == []
    assert store.find("box") is None
    assert host_names(home) == []
    assert not Path(home.path).exists()


def test_hosts_are_kept_and_found_by_either_name(home: Home) -> None:
    HostStore(home).add(RECORD)
    store = HostStore(home)
    assert store.find("box") == store.find("devbox") == RECORD
    assert store.named("devbox") is None
    assert host_names(home) == ["box"]
    assert "hidden-token" not in repr(store.all())
    assert Path(home.device_db).stat().st_mode & 0o777 == 0o600


def test_an_own_name_that_two_hosts_have_finds_neither(home: Home) -> None:
    store = HostStore(home)
    store.add(RECORD)
    store.add(RECORD._replace(name="other", environment_id="e2"))
    assert store.find("devbox") is None
    with pytest.raises(UsageError, match="another host is called box"):
        store.add(RECORD._replace(environment_id="e3"))
    with pytest.raises(UsageError, match="another host"):
        store.rename("other", "box")
    store.rename("other", "third")
    assert [r.name for r in store.all()] == ["box", "third"]
    with pytest.raises(UsageError, match="no host is called"):
        store.rename("nobody", "x")


def test_pairing_again_replaces(home: Home) -> None:
    store = HostStore(home)
    store.add(RECORD)
    store.add(RECORD._replace(name="renamed", token=Secret("new")))
    (only,) = store.all()
    assert (only.name, only.token.reveal()) == ("renamed", "new")
    store.renew("e1", "newer", 9)
    assert store.all()[0].token.reveal() == "newer"
    assert store.remove("renamed")
    assert not store.remove("renamed")


def test_a_damaged_file_is_named(home: Home) -> None:
    Path(home.path).mkdir()
    Path(home.device_db).write_bytes(b"x" * 200)
    with pytest.raises(StateError, match=r"device\.db"):
        HostStore(home).all()
    assert host_names(home) == []
