"""The registry calls over a real store, without a socket."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codexctl.paths import Home
from codexctl.relay import effects as fx
from codexctl.relay.calls import Answer, Failure, Request
from codexctl.relay.core import Rooms
from codexctl.relay.limits import Limits
from codexctl.relay.registry import SOCKET_PATH, STREAM_HEADER, Registry, Ticket
from codexctl.relay.store import Store

NOW = 1_800_000_000.0
KEY = {
    "suite": "Noise_IK_25519_AESGCM_SHA256",
    "x25519_public_key": base64.b64encode(b"k" * 32).decode(),
}
OFFICIAL_KEY = {
    "suite": "Noise_hybridIK_X25519+MLKEM768_AESGCM_SHA256",
    "x25519_public_key": base64.b64encode(b"k" * 32).decode(),
    "mlkem768_public_key": base64.b64encode(b"m" * 1184).decode(),
}
LIMITS = Limits(
    links_a_device_token=2,
    tickets_a_token=4,
    environments_an_owner=2,
    device_tokens_an_owner=2,
    pairings_an_owner=2,
    pairings=3,
    claims_a_minute=6,
    claims_a_minute_a_nameplate=3,
    handshakes_at_once=30,
    handshakes_a_second=1.0,
)


class Caller:
    """A registry and tokens to call it with."""

    def __init__(self, store: Store, limits: Limits = LIMITS) -> None:
        self.store = store
        self.rooms = Rooms(limits)
        self.registry = Registry(store, self.rooms, limits, os.urandom, NOW)
        self.now = NOW
        self.links = iter(range(1, 10_000))
        self.anna, self.anna_id = self.token("anna")
        self.bert, self.bert_id = self.token("bert")

    def token(self, owner: str, environment: str = "") -> tuple[str, str]:
        name = f"token {len(self.store.tokens())}"
        secret, token = self.store.create_token(
            name=name, expires_in_s=3600, owner=owner, environment_id=environment, now=NOW
        )
        return secret.reveal(), token.id

    def call(
        self, method: str, path: str, token: str = "", body: Any = None, **headers: str
    ) -> Answer:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            fields["authorization"] = f"Bearer {token}"
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.registry.answer(Request(method, path, fields, content), "ws://relay", self.now)

    def register(self, token: str, environment: str = "box", **body: Any) -> Answer:
        default = {"security_profile": "noise_ik_v1", "executor_public_key": KEY}
        return self.call(
            "POST", f"/cloud/environment/{environment}/register", token, default | body
        )

    def connect(self, token: str, environment: str = "box", key: Any = KEY) -> Answer:
        body = {"harness_public_key": key}
        return self.call("POST", f"/cloud/environment/{environment}/connect", token, body)

    def redeem(self, answer: Answer) -> Ticket:
        assert answer.body is not None
        return self.registry.redeem(answer.body["url"].removeprefix("ws://relay"), self.now)

    def open_device(self, token: str) -> int:
        ticket, link = self.redeem(self.connect(token)), next(self.links)
        self.rooms.device_opened(link, ticket.principal, ticket.environment_id, self.now)
        return link

    def offer(self, token: str, ticket: str = "t", expires_in_s: int = 300) -> Answer:
        digest = hashlib.sha256(ticket.encode()).hexdigest()
        body = {"environment_id": "box", "ticket_sha256": digest, "expires_in_s": expires_in_s}
        return self.call("POST", "/v1/pairings", token, body)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(Home(str(tmp_path / "home")))
    yield opened
    opened.close()


@pytest.fixture
def caller(store: Store) -> Caller:
    return Caller(store)


def _body(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    assert answer.body is not None
    return answer.body


def test_register_and_connect_answer_the_official_fields(caller: Caller) -> None:
    registered = _body(caller.register(caller.anna))
    assert set(registered) == {
        "environment_id",
        "url",
        "security_profile",
        "executor_registration_id",
    }
    assert registered["url"].startswith("ws://relay" + SOCKET_PATH)
    connected = _body(caller.connect(caller.anna))
    assert set(connected) == set(registered) | {"executor_public_key", "harness_key_authorization"}
    assert connected["executor_public_key"] == KEY
    assert connected["executor_registration_id"] == registered["executor_registration_id"]


def test_official_ends_register_and_connect_with_their_suite(caller: Caller) -> None:
    _body(
        caller.register(
            caller.anna, security_profile="noise_hybrid_ik_v1", executor_public_key=OFFICIAL_KEY
        )
    )
    assert _body(caller.connect(caller.anna, key=OFFICIAL_KEY))["executor_public_key"] == (
        OFFICIAL_KEY
    )
    assert caller.connect(caller.anna, key=KEY).status == 400


@pytest.mark.parametrize(
    "body",
    [
        {"security_profile": "none"},
        {"security_profile": "noise_hybrid_ik_v1"},
        {"security_profile": 5},
        {"executor_public_key": None},
        {"executor_public_key": "text"},
        {"executor_public_key": KEY | {"x25519_public_key": "AAAA"}},
        {"executor_public_key": KEY | {"x25519_public_key": "!" * 44}},
        {"executor_public_key": KEY | {"x25519_public_key": [1]}},
        {"executor_public_key": {"suite": KEY["suite"]}},
        {"executor_public_key": KEY | {"suite": "Noise_NN"}},
    ],
)
def test_a_key_document_is_checked(caller: Caller, body: dict[str, Any]) -> None:
    assert caller.register(caller.anna, **body).status == 400


def _calls_about(environment: str) -> list[tuple[str, str, Any]]:
    key = {"harness_public_key": KEY}
    return [
        ("POST", f"/cloud/environment/{environment}/connect", key),
        ("POST", f"/cloud/environment/{environment}/validate", key),
        ("GET", f"/v1/environments/{environment}", None),
        (
            "POST",
            "/v1/tokens",
            {"name": "x", "environment_id": environment, "expires_in_s": 60},
        ),
        (
            "POST",
            "/v1/pairings",
            {"environment_id": environment, "ticket_sha256": "0" * 64, "expires_in_s": 60},
        ),
    ]


def test_what_is_anothers_answers_as_what_does_not_exist(caller: Caller) -> None:
    _body(caller.register(caller.anna, "secret-box"))
    pairing = _body(_offer_at(caller, caller.anna, "secret-box"))["id"]
    _, device_id = caller.token("anna", "secret-box")
    for (method, path, body), (_, absent, same) in zip(
        _calls_about("secret-box"), _calls_about("no-such-box"), strict=True
    ):
        theirs = caller.call(method, path, caller.bert, body)
        nobodys = caller.call(method, absent, caller.bert, same)
        assert theirs.status == 404
        assert theirs == nobodys
    for kind, existing in (
        ("tokens", device_id),
        ("tokens", caller.anna_id),
        ("pairings", pairing),
    ):
        theirs = caller.call("DELETE", f"/v1/{kind}/{existing}", caller.bert)
        nobodys = caller.call("DELETE", f"/v1/{kind}/absent", caller.bert)
        assert theirs.status == 404
        assert theirs == nobodys
    assert _body(caller.call("GET", "/v1/environments", caller.bert)) == {"environments": []}
    listed = _body(caller.call("GET", "/v1/tokens", caller.bert))["tokens"]
    assert [one["id"] for one in listed] == [caller.bert_id]
    assert caller.store.pairing(pairing).ended_at is None  # type: ignore[union-attr]


def _offer_at(caller: Caller, token: str, environment: str) -> Answer:
    body = {"environment_id": environment, "ticket_sha256": "1" * 64, "expires_in_s": 60}
    return caller.call("POST", "/v1/pairings", token, body)


def test_a_device_token_connects_to_its_environment_and_nothing_else(caller: Caller) -> None:
    for name in ("box", "den"):
        _body(caller.register(caller.anna, name))
    body = {"name": " my\nphone ", "environment_id": "box", "expires_in_s": 60}
    made = _body(caller.call("POST", "/v1/tokens", caller.anna, body))
    assert set(made) == {"token", "id", "expires_at"}
    token = made["token"]
    assert caller.store.token(made["id"]).name == "my phone"  # type: ignore[union-attr]
    _body(caller.connect(token))
    assert caller.connect(token, "den").status == 404
    assert caller.connect(token, "absent").status == 404
    assert caller.register(token).status == 403
    assert caller.call("POST", "/v1/tokens", token, body).status == 403
    assert caller.offer(token).status == 403
    assert caller.call("GET", "/v1/tokens", token).status == 403
    listed = _body(caller.call("GET", "/v1/environments", token))["environments"]
    assert [one["environment_id"] for one in listed] == ["box"]
    assert caller.call("GET", "/v1/environments/den", token).status == 404
    assert caller.call("DELETE", f"/v1/tokens/{caller.anna_id}", token).status == 404
    assert caller.call("DELETE", f"/v1/tokens/{made['id']}", token).status == 204
    assert caller.connect(token).status == 401


def test_an_owner_revokes_devices_but_not_other_owner_tokens(caller: Caller) -> None:
    _body(caller.register(caller.anna))
    second, second_id = caller.token("anna")
    assert caller.call("DELETE", f"/v1/tokens/{second_id}", caller.anna).status == 404
    _body(caller.register(second))
    assert caller.call("DELETE", f"/v1/tokens/{second_id}", second).status == 204
    assert caller.register(second).status == 401


def test_the_host_can_validate_what_connect_authorized_once(caller: Caller) -> None:
    registration = _body(caller.register(caller.anna))["executor_registration_id"]
    phone, phone_id = caller.token("anna", "box")
    connected = _body(caller.connect(phone))
    link = caller.redeem(Answer(200, connected))
    stream = b"5f0c6c2e-0000-4000-8000-000000000000"
    caller.rooms.device_opened(1, link.principal, "box", NOW)
    caller.rooms.unrouted(1, stream, NOW)

    def valid(stream_id: str = "", token: str = caller.anna, **change: Any) -> bool:
        body = {
            "executor_registration_id": registration,
            "harness_public_key": KEY,
            "harness_key_authorization": connected["harness_key_authorization"],
        }
        answer = caller.registry.answer(
            Request(
                "POST",
                "/cloud/environment/box/validate",
                {"authorization": f"Bearer {token}"}
                | ({STREAM_HEADER: stream_id} if stream_id else {}),
                json.dumps(body | change).encode(),
            ),
            "ws://relay",
            caller.now,
        )
        return bool(_body(answer)["valid"])

    assert not valid("another-stream")
    assert not valid(executor_registration_id="reg_other")
    assert not valid(harness_public_key=KEY | {"x25519_public_key": "other"})
    assert not valid(harness_key_authorization="x.y.z")
    assert not valid(harness_key_authorization=connected["harness_key_authorization"] + "x")
    caller.now += LIMITS.ticket_s
    assert not valid()
    caller.now = NOW
    # None of these guesses has used it up; this does.
    assert valid(stream.decode())
    assert not valid(stream.decode())
    another = _body(caller.connect(phone))["harness_key_authorization"]
    caller.store.revoke(phone_id, NOW)
    assert not valid(harness_key_authorization=another)


def test_no_authorization_outlives_the_relay(caller: Caller, store: Store) -> None:
    registration = _body(caller.register(caller.anna))["executor_registration_id"]
    authorization = _body(caller.connect(caller.anna))["harness_key_authorization"]
    again = Registry(store, Rooms(LIMITS), LIMITS, os.urandom, NOW)
    body = {
        "executor_registration_id": registration,
        "harness_public_key": KEY,
        "harness_key_authorization": authorization,
    }
    answer = again.answer(
        Request(
            "POST",
            "/cloud/environment/box/validate",
            {"authorization": f"Bearer {caller.anna}"},
            json.dumps(body).encode(),
        ),
        "ws://relay",
        NOW + 1,
    )
    assert _body(answer) == {"valid": False}


def test_a_pairing_lets_its_ticket_connect_until_it_ends(caller: Caller) -> None:
    _body(caller.register(caller.anna))
    _body(caller.register(caller.anna, "den"))
    offered = _body(caller.offer(caller.anna, "ticket"))
    assert offered["nameplate"] == 1
    assert offered["expires_at"] == int(NOW) + 300
    assert caller.connect("ticket", "den").status == 404
    pending = caller.connect("ticket")
    ticket = caller.redeem(caller.connect("ticket"))
    assert ticket.principal.kind == fx.PAIRING
    # The connection may finish its work shortly after the offer expired.
    assert ticket.principal.expires_at == offered["expires_at"] + LIMITS.pairing_grace_s
    assert caller.register("ticket").status == 403
    claimed = _body(caller.call("POST", "/v1/pairings/claim", body={"nameplate": 1}))
    assert claimed["environment_id"] == "box"
    _body(caller.connect(claimed["ticket"]))
    assert caller.call("DELETE", f"/v1/pairings/{offered['id']}", caller.anna).status == 204
    for used in ("ticket", claimed["ticket"]):
        assert caller.connect(used).status == 401
    with pytest.raises(Failure):
        caller.redeem(pending)
    assert caller.call("POST", "/v1/pairings/claim", body={"nameplate": 1}).status == 404


def test_a_pairing_expires(caller: Caller) -> None:
    _body(caller.register(caller.anna))
    _body(caller.offer(caller.anna, "ticket", 60))
    caller.now += 60
    assert caller.connect("ticket").status == 401
    assert caller.call("POST", "/v1/pairings/claim", body={"nameplate": 1}).status == 404


def test_pairing_codes_cannot_be_tried_quickly(caller: Caller) -> None:
    _body(caller.register(caller.anna))
    _body(caller.offer(caller.anna))

    def claim(nameplate: int) -> int:
        return caller.call("POST", "/v1/pairings/claim", body={"nameplate": nameplate}).status

    assert [claim(1) for _ in range(4)] == [200, 200, 200, 429]
    assert [claim(n) for n in (7, 8, 9)] == [404, 404, 429]
    caller.now += 61
    caller.registry.ticked(caller.now)
    assert claim(1) == 200


def test_every_count_has_its_bound(caller: Caller) -> None:
    _body(caller.register(caller.anna))
    _body(caller.register(caller.anna, "den"))
    assert caller.register(caller.anna, "third").status == 429
    _body(caller.register(caller.bert, "third"))
    body = {"name": "x", "environment_id": "box", "expires_in_s": 60}
    statuses = [caller.call("POST", "/v1/tokens", caller.anna, body).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert [caller.offer(caller.anna, t).status for t in "abc"] == [200, 200, 429]
    phone, _ = caller.token("anna", "box")
    statuses = [caller.connect(phone).status for _ in range(LIMITS.tickets_a_token + 1)]
    assert statuses == [200] * LIMITS.tickets_a_token + [429]
    caller.now += LIMITS.ticket_s
    caller.registry.ticked(caller.now)
    caller.open_device(phone)
    caller.open_device(phone)
    refused = caller.connect(phone)
    assert refused.status == 429
    assert refused.body is not None
    assert "connections" in refused.body["message"]


def test_a_token_that_calls_too_often_waits(caller: Caller) -> None:
    _body(caller.register(caller.anna))
    answers = [caller.offer(caller.anna, "same") for _ in range(LIMITS.handshakes_at_once)]
    assert [a.status for a in answers] == [200] + [400] * (LIMITS.handshakes_at_once - 2) + [429]
    assert answers[-1].retry_after_s > 0
    _body(caller.register(caller.bert))  # the bound is each token's own
    caller.now += 2
    assert caller.register(caller.anna).status == 200


def test_a_draining_registry_answers_health_and_sends_the_rest_away(caller: Caller) -> None:
    registered = caller.register(caller.anna)
    caller.registry.draining = True
    assert _body(caller.call("GET", "/v1/health"))["status"] == "draining"
    assert caller.register(caller.anna).status == 503
    assert caller.connect(caller.anna).status == 503
    with pytest.raises(Failure) as caught:
        caller.redeem(registered)
    assert caught.value.answer.status == 503


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer cxr_unknown", "cxr_unknown"]
)
def test_who_shows_no_good_token_learns_nothing(caller: Caller, header: str) -> None:
    _body(caller.register(caller.anna))
    for path in ("/v1/environments/box", "/v1/environments/absent", "/v1/no-such-call"):
        answer = caller.registry.answer(
            Request("GET", path, {"authorization": header}, b""), "ws://relay", NOW
        )
        assert answer.status == 401


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=8,
)
FIELDS = [
    "security_profile",
    "executor_public_key",
    "harness_public_key",
    "executor_registration_id",
    "harness_key_authorization",
    "name",
    "environment_id",
    "expires_in_s",
    "ticket_sha256",
    "nameplate",
]


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT"]),
    path=st.one_of(
        st.sampled_from(
            [
                "/cloud/environment/box/register",
                "/cloud/environment/box/connect",
                "/cloud/environment/box/validate",
                "/v1/tokens",
                "/v1/pairings",
                "/v1/pairings/claim",
                "/v1/environments/%00",
            ]
        ),
        st.text(max_size=30).map(lambda text: "/" + text),
    ),
    body=st.one_of(
        st.binary(max_size=40),
        st.dictionaries(st.sampled_from(FIELDS), json_values).map(
            lambda value: json.dumps(value).encode()
        ),
        st.integers(1, 200_000).map(lambda depth: b"[" * min(depth, 60_000)),
    ),
)
def test_no_request_gets_anything_but_an_answer(
    caller: Caller, method: str, path: str, body: bytes
) -> None:
    answer = caller.call(method, path, caller.anna, body)
    assert answer.status in (200, 204, 400, 401, 403, 404, 429)
    if answer.status >= 400:
        assert answer.body is not None
        assert set(answer.body) == {"error", "message", "hint"}
