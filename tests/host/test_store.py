"""host.db: pairing again, names that collide, revoking, settings, the audit head."""

from __future__ import annotations

from pathlib import Path

import pytest

from codexctl.errors import StateError
from codexctl.host import store
from codexctl.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home")).ensure()


def test_devices(home: Home) -> None:
    db = store.open_store(home)
    first = store.add_device(db, id="d1", name="laptop", public_key=b"a" * 32, scopes={"view"})
    second = store.add_device(db, id="d2", name="laptop", public_key=b"b" * 32, scopes={"exec"})
    assert (first.name, second.name) == ("laptop", "laptop-2")
    assert first.scopes == {"view"}
    assert [d.id for d in store.list_devices(db)] == ["d1", "d2"]
    store.touch_device(db, "d1")
    seen = store.device_by_name(db, "laptop")
    assert seen is not None
    assert seen.last_seen is not None


def test_revoke_and_pair_again(home: Home) -> None:
    db = store.open_store(home)
    store.add_device(db, id="d1", name="laptop", public_key=b"a" * 32, scopes={"view"})
    assert store.revoke_device(db, "d1")
    assert not store.revoke_device(db, "d1")
    assert store.list_devices(db) == []
    assert len(store.list_devices(db, revoked=True)) == 1
    assert store.device_by_name(db, "laptop") is None
    revoked = store.device_by_key(db, b"a" * 32)
    assert revoked is not None
    assert revoked.revoked_at is not None
    again = store.add_device(
        db, id="new", name="laptop", public_key=b"a" * 32, scopes={"view", "exec"}
    )
    assert (again.id, again.name, again.revoked_at) == ("d1", "laptop", None)
    assert again.scopes == {"view", "exec"}


def test_settings_and_head(home: Home) -> None:
    db = store.open_store(home)
    assert store.get_setting(db, "relay") is None
    store.set_setting(db, "relay", "a")
    store.set_setting(db, "relay", "b")
    assert store.get_setting(db, "relay") == "b"
    assert store.read_audit_head(db) is None
    store.write_audit_head(db, store.AuditHead(1, "00"))
    store.write_audit_head(db, store.AuditHead(2, "11"))
    assert store.read_audit_head(db) == (2, "11")


def test_reporting_names_the_file(home: Home) -> None:
    db = store.open_store(home)
    with pytest.raises(StateError, match=r"cannot use .*host\.db"), store.reporting(home.host_db):
        db.execute("SELECT * FROM nothing")


def test_a_newer_file_is_refused(home: Home) -> None:
    db = store.open_store(home)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StateError, match="newer codexctl"):
        store.open_store(home)
