"""The hybrid suite between codexctl's own ends: by default, raised from old ones, not lowered."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
from contextlib import closing

from codexctl.noise.suites import DEFAULT, HYBRID
from tests.e2e.conftest import Pair


def change(pair: Pair, who: str, file: str, statement: str, *values: object) -> None:
    """One statement in a database of the host's or the device's home."""
    path = getattr(pair, who).home / file
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        assert db.execute(statement, values).rowcount == 1


def forget_pin(pair: Pair, who: str) -> None:
    """As a pairing of before the hybrid suite stands there."""
    if who == "device":
        change(
            pair, who, "device.db", "UPDATE hosts SET suite = ?, key_sha256 = NULL", DEFAULT.name
        )
    else:
        change(pair, who, "host.db", "UPDATE devices SET key_sha256 = NULL")


def suite(pair: Pair) -> str:
    shown: dict[str, str] = pair.device.json("hosts", "show", "box")
    return shown["suite"]


def test_a_pairing_is_used_in_the_hybrid_suite_at_once(box: Pair) -> None:
    assert suite(box) == HYBRID
    assert (box.device.home / "identity-mlkem.key").stat().st_mode & 0o777 == 0o600


def test_an_old_pairing_works_and_is_raised_by_its_next_session(box: Pair) -> None:
    forget_pin(box, "device")
    assert suite(box) == DEFAULT.name
    assert suite(box) == HYBRID


def test_the_host_does_not_go_back(box: Pair) -> None:
    assert suite(box) == HYBRID
    forget_pin(box, "device")
    done = box.device.run("exec", "box", "--", "true", check=255)
    assert b"knows this device in the post-quantum suite and takes no other" in done.stderr
    assert b"pair again" in done.stderr
    assert any(r["what"] == "suite" for r in box.host.json("audit", "list"))
    # Pairing again brings both to one state.
    box.device.run("pair", box.offer()["url"])
    assert suite(box) == HYBRID


def test_another_post_quantum_key_of_the_device_is_refused(box: Pair) -> None:
    assert suite(box) == HYBRID
    (box.device.home / "identity-mlkem.key").unlink()
    done = box.device.run("exec", "box", "--", "true", check=255)
    assert b"pair again" in done.stderr


def present(pair: Pair, mlkem768: bytes | None) -> None:
    """Have the relay show the host with another ML-KEM key, or without one."""
    path = pair.host.home / "relay.db"
    with closing(sqlite3.connect(path, timeout=30)) as db:
        (text,) = db.execute("SELECT public_key FROM registrations").fetchone()
    document = json.loads(text)
    document.pop("mlkem768_public_key", None)
    if mlkem768 is not None:
        document["mlkem768_public_key"] = base64.b64encode(mlkem768).decode()
    change(
        pair, "host", "relay.db", "UPDATE registrations SET public_key = ?", json.dumps(document)
    )


def test_a_relay_cannot_lower_or_change_what_is_pinned(box: Pair) -> None:
    present(box, None)
    done = box.device.run("exec", "box", "--", "true", check=255)
    assert b"the relay shows no post-quantum key for box" in done.stderr
    present(box, os.urandom(1184))
    done = box.device.run("exec", "box", "--", "true", check=255)
    assert b"the relay shows another post-quantum key for box" in done.stderr


def test_what_a_relay_shows_alone_is_not_pinned(box: Pair) -> None:
    """An old pairing takes the new pin from the host's own word, not from the relay's."""
    forget_pin(box, "device")
    present(box, os.urandom(1184))
    assert suite(box) == DEFAULT.name
    assert suite(box) == DEFAULT.name
