"""relay.db: what is kept, what is never written, what another process may change."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from codexctl.errors import StateError, UsageError
from codexctl.paths import Home
from codexctl.relay import effects as fx
from codexctl.relay.store import NoSuchToken, Store

NOW = 1_800_000_000.0
BOX = fx.RoomKey("default", "box")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


def test_a_token_is_known_by_its_secret_until_it_expires(store: Store) -> None:
    secret, token = store.create_token(name="lap", expires_in_s=60, now=NOW)
    assert secret.reveal().startswith("cxr_")
    assert repr(secret) == "(hidden)"
    caller = store.authenticate(secret.reveal(), NOW + 59)
    assert caller == fx.Principal(token.id, "default", fx.OWNER, "", int(NOW) + 60)
    assert store.authenticate(secret.reveal(), NOW + 60) is None
    assert store.authenticate(secret.reveal() + "x", NOW) is None
    assert store.authenticate("", NOW) is None


def test_no_secret_stands_in_the_file(home: Home, store: Store) -> None:
    secret, token = store.create_token(name="lap", expires_in_s=60, now=NOW)
    pairing = store.add_pairing(BOX, b"h" * 32, 60, NOW)
    assert pairing is not None
    claim = store.claim_ticket(pairing.id)
    content = b"".join(
        path.read_bytes() for path in Path(home.path).iterdir() if path.name.startswith("relay.db")
    )
    assert token.id.encode() in content
    assert secret.reveal().encode() not in content
    assert secret.reveal().removeprefix("cxr_").encode() not in content
    assert claim.encode() not in content
    assert stat.S_IMODE(os.stat(home.relay_db).st_mode) == 0o600


def test_tokens_and_registrations_survive_a_restart(home: Home, store: Store) -> None:
    secret, _ = store.create_token(name="lap", expires_in_s=60, now=NOW)
    first = store.register(BOX, "noise_ik_v1", '{"k":1}', NOW)
    store.close()
    again = Store.open(home)
    try:
        assert again.authenticate(secret.reveal(), NOW) is not None
        assert again.register(BOX, "noise_ik_v1", '{"k":1}', NOW + 5) == first
        other = again.register(BOX, "noise_ik_v1", '{"k":2}', NOW + 6)
        assert other.registration_id != first.registration_id
        assert again.registration(BOX) == other
    finally:
        again.close()


def test_another_owner_gets_a_registration_of_its_own(store: Store) -> None:
    ours = store.register(BOX, "noise_ik_v1", "{}", NOW)
    theirs = store.register(fx.RoomKey("bert", "box"), "noise_ik_v1", "{}", NOW)
    assert ours.registration_id != theirs.registration_id


def test_a_revocation_by_another_process_is_noticed_once(home: Home, store: Store) -> None:
    secret, token = store.create_token(name="lap", expires_in_s=60, now=NOW)
    other = Store.open(home)
    try:
        assert store.refresh() == []
        other.revoke(token.id, NOW)
        assert store.refresh() == [token.id]
        assert store.refresh() == []
        assert store.authenticate(secret.reveal(), NOW) is None
        fresh, _ = other.create_token(name="new", expires_in_s=60, now=NOW)
        assert store.refresh() == []
        assert store.authenticate(fresh.reveal(), NOW) is not None
    finally:
        other.close()


def test_names_of_owner_tokens_are_unique_while_they_count(store: Store) -> None:
    _, token = store.create_token(name="lap", expires_in_s=60, now=NOW)
    with pytest.raises(UsageError, match="exists already"):
        store.create_token(name="lap", expires_in_s=60, now=NOW)
    store.create_token(name="lap", expires_in_s=60, owner="bert", now=NOW)
    store.revoke(token.id, NOW)
    store.create_token(name="lap", expires_in_s=60, now=NOW)
    store.create_token(name="phone", expires_in_s=60, environment_id="box", now=NOW)
    store.create_token(name="phone", expires_in_s=60, environment_id="box", now=NOW)


@pytest.mark.parametrize("name", ["", " lap", "a\nb", "x" * 101, "\x1b[31m"])
def test_a_name_can_be_shown(store: Store, name: str) -> None:
    with pytest.raises(UsageError):
        store.create_token(name=name, expires_in_s=60)


def test_tokens_are_found_by_id_and_name(store: Store) -> None:
    _, one = store.create_token(name="lap", expires_in_s=60, now=NOW)
    _, two = store.create_token(name="lap", expires_in_s=60, environment_id="box", now=NOW)
    assert store.find_tokens(one.id, NOW) == [one]
    assert {t.id for t in store.find_tokens("lap", NOW)} == {one.id, two.id}
    store.create_token(name="lap", expires_in_s=60, owner="bert", now=NOW)
    with pytest.raises(UsageError, match="several owners"):
        store.find_tokens("lap", NOW)
    with pytest.raises(NoSuchToken):
        store.find_tokens("nobody", NOW)
    with pytest.raises(NoSuchToken):
        store.find_tokens(one.id, NOW + 61)


def test_nameplates_are_the_smallest_free_and_not_reused_early(store: Store) -> None:
    def offer(ticket: bytes, now: float) -> int:
        pairing = store.add_pairing(BOX, ticket * 32, 300, now)
        assert pairing is not None
        return pairing.nameplate

    assert [offer(bytes((n,)), NOW) for n in range(3)] == [1, 2, 3]
    first = store.pairing_at(1, NOW)
    assert first is not None
    store.end_pairing(first.id, NOW + 1)
    assert store.pairing_at(1, NOW + 2) is None
    # A code that is still on somebody's screen leads nowhere rather than to another host.
    assert offer(b"x", NOW + 2) == 4
    assert offer(b"y", NOW + 301) == 1
    assert store.live_pairings(NOW + 301) == 2
    assert store.live_pairings(NOW + 301, "bert") == 0


def test_a_ticket_is_offered_once(store: Store) -> None:
    assert store.add_pairing(BOX, b"t" * 32, 60, NOW) is not None
    assert store.add_pairing(BOX, b"t" * 32, 60, NOW) is None
    assert store.add_pairing(BOX, b"u" * 32, 60, NOW) is not None


def test_claims_come_back_with_tokens_that_count(home: Home, store: Store) -> None:
    _, live = store.create_token(name="a", expires_in_s=60, now=NOW)
    _, ended = store.create_token(name="b", expires_in_s=60, now=NOW)
    store.save_claims([(BOX, b"s1", live.id), (BOX, b"s2", ended.id), (BOX, b"s3", live.id)])
    store.save_claims([(BOX, b"s3", None)])
    store.revoke(ended.id, NOW)
    kept = [fx.Claim(BOX, b"s1", live.id)]
    assert store.live_claims(NOW) == kept
    assert len(store.read("SELECT * FROM claims")) == 1, "the other is gone from the file"


def test_what_ended_long_ago_is_forgotten(store: Store) -> None:
    _, old = store.create_token(name="old", expires_in_s=60, now=NOW)
    _, new = store.create_token(name="new", expires_in_s=90 * 86_400, now=NOW)
    store.register(BOX, "noise_ik_v1", "{}", NOW)
    store.clean(NOW + 40 * 86_400)
    assert [t.id for t in store.tokens()] == [new.id]
    assert store.token(old.id) is None
    assert store.registration(BOX) is not None
    store.clean(NOW + 170 * 86_400, online=[BOX])  # it has been connected all the time
    store.clean(NOW + 200 * 86_400)
    assert store.registration(BOX) is not None
    store.clean(NOW + 360 * 86_400)
    assert store.registration(BOX) is None


def test_a_file_that_is_no_database_is_named(home: Home) -> None:
    home.ensure()
    Path(home.relay_db).write_bytes(b"something else" * 1000)
    with pytest.raises(StateError) as caught:
        Store.open(home)
    assert home.relay_db in caught.value.message
    assert caught.value.hint


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError) as caught:
        Store.open(Home(str(tmp_path / "file" / "home")))
    assert "cannot make" in caught.value.message
