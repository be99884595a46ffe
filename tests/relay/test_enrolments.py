"""Single-use tokens: one host gets in, once, with a token of its own for its one environment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codexctl.client.registry import HostOffline, Relay, TokenRefused
from codexctl.errors import ConnectionFailed, StateError
from codexctl.host import enrolment
from codexctl.noise.keys import key_id
from codexctl.paths import Home
from codexctl.relay import enrolments
from codexctl.relay.calls import Answer
from codexctl.relay.effects import Close
from codexctl.relay.schema import MIGRATIONS
from codexctl.relay.store import Store
from codexctl.secret import Secret
from codexctl.state.database import open_database
from codexctl.state.identity import load_identity
from tests.relay.test_registry import NOW, Caller

OWN = "cxr_own-token-of-the-new-host"
DIGEST = hashlib.sha256(OWN.encode()).hexdigest()


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    store = Store.open(Home(str(tmp_path / "home")))
    yield Caller(store)
    store.close()


def enrol(caller: Caller, name: str = "box", **more: Any) -> str:
    body = {"name": name, "expires_in_s": 600, "host_expires_in_s": 7200, **more}
    made = caller.call("POST", "/v1/enrolments", caller.anna, body)
    assert made.status == 200, made.body
    assert made.body is not None
    return str(made.body["token"])


def redeem(caller: Caller, token: str, environment: str = "new", digest: str = DIGEST) -> Answer:
    body = {"environment_id": environment, "token_sha256": digest}
    return caller.call("POST", "/v1/enrolments/redeem", token, body)


def test_it_works_once_and_what_is_got_serves_one_environment(caller: Caller) -> None:
    single = enrol(caller)
    assert single.startswith("cxe_")
    assert caller.register(single, "new").status == 403, "it has to be exchanged first"
    answer = redeem(caller, single)
    assert answer.status == 200
    assert answer.body is not None
    assert answer.body["expires_at"] == int(NOW) + 7200
    assert redeem(caller, single).status == 401, "it is used up"
    assert caller.register(OWN, "new").status == 200
    assert caller.register(OWN, "other").status == 404
    assert caller.call("GET", "/v1/tokens", OWN).status == 403
    environments = caller.call("GET", "/v1/environments", OWN).body
    assert environments is not None
    assert [e["environment_id"] for e in environments["environments"]] == ["new"]


def test_a_hosts_own_token_lets_devices_in_and_out_of_its_environment_alone(caller: Caller) -> None:
    redeem(caller, enrol(caller))
    caller.register(OWN, "new")
    caller.register(caller.anna, "box")
    body = {"name": "lap", "expires_in_s": 60}
    mine = caller.call("POST", "/v1/tokens", OWN, {**body, "environment_id": "new"})
    assert mine.status == 200
    others = caller.call("POST", "/v1/tokens", caller.anna, {**body, "environment_id": "box"})
    assert caller.call("POST", "/v1/tokens", OWN, {**body, "environment_id": "box"}).status == 404
    pairing = {"environment_id": "new", "ticket_sha256": "a" * 64, "expires_in_s": 60}
    offer = caller.call("POST", "/v1/pairings", OWN, pairing)
    assert offer.status == 200
    assert caller.call("POST", "/v1/pairings", OWN, pairing | {"environment_id": "box"}).status == (
        404
    )
    assert mine.body is not None
    assert others.body is not None
    assert offer.body is not None
    assert caller.call("DELETE", f"/v1/tokens/{others.body['id']}", OWN).status == 404
    assert caller.call("DELETE", f"/v1/tokens/{caller.anna_id}", OWN).status == 404
    assert caller.call("DELETE", f"/v1/tokens/{mine.body['id']}", OWN).status == 204
    assert caller.call("DELETE", f"/v1/pairings/{offer.body['id']}", OWN).status == 204


def test_an_owner_ends_a_host_and_its_connection_is_cut(caller: Caller) -> None:
    answer = redeem(caller, enrol(caller))
    assert answer.body is not None
    ticket, link = caller.redeem(caller.register(OWN, "new")), next(caller.links)
    caller.rooms.host_opened(
        link, ticket.principal, ticket.environment_id, ticket.registration_id, caller.now
    )
    ended = caller.call("DELETE", f"/v1/tokens/{answer.body['id']}", caller.anna)
    assert ended.status == 204
    assert [e.link for e in ended.effects if isinstance(e, Close)] == [link]
    assert caller.register(OWN, "new").status == 401


def test_what_is_registered_is_given_only_to_the_same_name_again(caller: Caller) -> None:
    redeem(caller, enrol(caller))
    caller.register(OWN, "new")
    caller.register(caller.anna, "box")
    other = hashlib.sha256(b"another").hexdigest()
    assert redeem(caller, enrol(caller, "thief"), "new", other).status == 409
    assert redeem(caller, enrol(caller), "box", other).status == 409
    assert caller.register(OWN, "new").status == 200
    assert redeem(caller, enrol(caller), "new", other).status == 200
    assert caller.register(OWN, "new").status == 401, "the earlier token of that name has ended"


def test_a_secret_that_was_there_before_uses_nothing_up(caller: Caller) -> None:
    redeem(caller, enrol(caller))
    single = enrol(caller, "second")
    assert redeem(caller, single, "second").status == 400
    assert redeem(caller, single, "second", hashlib.sha256(b"2").hexdigest()).status == 200


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"expires_in_s": 90_000}, 400),
        ({"host_expires_in_s": 0}, 400),
        ({"name": ""}, 400),
        ({"expires_in_s": "600"}, 400),
    ],
)
def test_what_is_asked_for_is_checked(
    caller: Caller, change: dict[str, Any], expected: int
) -> None:
    body = {"name": "box", "expires_in_s": 600, "host_expires_in_s": 7200, **change}
    assert caller.call("POST", "/v1/enrolments", caller.anna, body).status == expected


def test_it_expires_and_only_owners_make_one(caller: Caller) -> None:
    single = enrol(caller)
    redeem(caller, enrol(caller, "a"))
    body = {"name": "x", "expires_in_s": 60, "host_expires_in_s": 60}
    assert caller.call("POST", "/v1/enrolments", OWN, body).status == 403
    assert redeem(caller, caller.anna).status == 403
    assert redeem(caller, single, digest="zz").status == 400
    caller.now = NOW + 601
    assert redeem(caller, single).status == 401


def test_a_file_of_before_keeps_its_tokens(tmp_path: Path) -> None:
    home = Home(str(tmp_path)).ensure()
    old = open_database(home.relay_db, MIGRATIONS[:1])
    old.execute(
        "INSERT INTO tokens (id, owner, name, kind, secret_sha256, created_at, expires_at)"
        " VALUES ('tok_1', 'default', 'lap', 'owner', ?, 1, 99)",
        (hashlib.sha256(b"secret").digest(),),
    )
    old.close()
    store = Store.open(home)
    assert [(t.id, t.kind, t.expires_at) for t in store.tokens()] == [("tok_1", "owner", 99)]
    assert store.authenticate("secret", 2) is not None
    store.close()


class AtHost:
    """`with_own_token` against the registry, with answers that get lost."""

    def __init__(self, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        self.caller, self.calls, self.lose = caller, 0, 0
        monkeypatch.setattr(enrolment, "call", self.call)

    def call(self, relay: Relay, method: str, path: str, body: Any = None) -> dict[str, Any]:
        assert relay.token is not None
        self.calls += 1
        answer = self.caller.call(method, path, relay.token.reveal(), body)
        if self.lose:
            self.lose -= 1
            raise ConnectionFailed("the answer was lost")
        if answer.status in (401, 403):
            raise TokenRefused("no")
        if answer.status == 404:
            raise HostOffline("no")
        assert answer.body is not None
        return answer.body


def test_the_host_keeps_what_it_got_over_lost_answers_and_restarts(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = AtHost(caller, monkeypatch)
    home = Home(str(tmp_path / "host"))
    given = Relay("http://relay", None, Secret(enrol(caller)))
    host.lose = 1
    with pytest.raises(ConnectionFailed):
        enrolment.with_own_token(home, given)
    own = enrolment.with_own_token(home, given)
    assert own.token is not None
    assert own.token.reveal().startswith("cxr_")
    environment = key_id(load_identity(home).public_bytes)
    assert caller.register(own.token.reveal(), environment).status == 200
    calls = host.calls
    assert enrolment.with_own_token(home, given).token == own.token
    assert host.calls == calls, "a later start asks nobody"
    # Set up again, with another single-use token of the same name.
    again = enrolment.with_own_token(home, given._replace(token=Secret(enrol(caller))))
    assert again.token is not None
    assert caller.register(own.token.reveal(), environment).status == 401
    assert caller.register(again.token.reveal(), environment).status == 200


def test_a_used_token_and_a_damaged_file_are_told(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    AtHost(caller, monkeypatch)
    given = Relay("http://relay", None, Secret(enrol(caller)))
    enrolment.with_own_token(Home(str(tmp_path / "first")), given)
    with pytest.raises(TokenRefused):
        enrolment.with_own_token(Home(str(tmp_path / "second")), given)
    damaged = tmp_path / "second" / enrolment.FILE
    damaged.write_text("{")
    with pytest.raises(StateError, match="damaged"):
        enrolment.with_own_token(Home(str(tmp_path / "second")), given)
    owners = Relay("http://relay", None, Secret(caller.anna))
    assert enrolment.with_own_token(Home(str(tmp_path / "third")), owners) is owners


def test_the_prefix_is_the_same_at_both_ends() -> None:
    assert enrolment.SINGLE_USE_PREFIX == enrolments.ENROLMENT_PREFIX
