"""What can go wrong between codexctl and DigitalOcean, and that nothing is lost by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from codexctl_plugins.digitalocean import DigitalOcean

from codexctl.provision.errors import (
    CredentialsReadOnly,
    CredentialsWrong,
    IncompleteList,
    NoCapacity,
    OutcomeUnknown,
    PaymentRequired,
    ProviderError,
    ProviderUnreachable,
    QuotaReached,
    RateLimited,
    UserDataTooLarge,
)
from codexctl.provision.model import Account, Order, Provider
from tests.clouds.conftest import OpenAccount, Store, new_order
from tests.clouds.digitalocean_answers import Answer, refusal, unprocessable
from tests.clouds.digitalocean_cloud import READ_ONLY_TOKEN, TOKEN
from tests.clouds.fake_digitalocean import FakeDigitalOcean
from tests.clouds.test_digitalocean import NOTHING, ONE, plan

# The calls of one `create`, in order.
STEPS = [
    ("GET", "/v2/droplets"),
    ("POST", "/v2/tags"),
    ("POST", "/v2/firewalls"),
    ("POST", "/v2/account/keys"),
    ("POST", "/v2/droplets"),
]
SERVER_ERROR = refusal(500, "server_error", "Unexpected server-side error")
WRONG_BODIES = [
    b"",
    b"<html>",
    b"[]",
    b"{}",
    b"null",
    b'{"droplet": 7}',
    b'{"droplet": {"id": null}}',
]


def wrong(body: bytes, status: int = 200) -> Answer:
    return Answer(status, body)


@pytest.mark.parametrize("effect", [False, True], ids=["lost request", "lost answer"])
@pytest.mark.parametrize("step", STEPS, ids=[f"{method} {path}" for method, path in STEPS])
@pytest.mark.parametrize("answer", [None, SERVER_ERROR, wrong(b"{")], ids=["cut", "500", "half"])
def test_create_again_ends_with_one_machine(
    fake: FakeDigitalOcean,
    open_account: OpenAccount,
    step: tuple[str, str],
    effect: bool,
    answer: Answer | None,
) -> None:
    account = open_account()
    order = new_order(plan(account))
    fake.fail(*step, answer, effect=effect)
    with pytest.raises((OutcomeUnknown, IncompleteList)):
        account.create(order)
    assert len(fake.droplets) == (step == STEPS[-1] and effect)
    # Another process finds its way from what is there.
    again = open_account()
    again.create(order)
    assert fake.exists() == ONE
    again.destroy(order.ref)
    assert again.resources(order.ref) == []
    assert fake.exists() == NOTHING


@pytest.mark.parametrize("step", STEPS, ids=[f"{method} {path}" for method, path in STEPS])
def test_destroy_after_a_create_that_stopped_anywhere_leaves_nothing(
    fake: FakeDigitalOcean, account: Account, open_account: OpenAccount, step: tuple[str, str]
) -> None:
    order = new_order(plan(account))
    fake.fail(*step, None, effect=True)
    with pytest.raises((OutcomeUnknown, IncompleteList)):
        account.create(order)
    again = open_account()
    again.destroy(order.ref)
    assert again.resources(order.ref) == []
    assert fake.exists() == NOTHING


@pytest.mark.parametrize(
    "path",
    ["/v2/droplets/.*", "/v2/firewalls/.*", "/v2/account/keys/.*", "/v2/tags/codexctl-id.*"],
)
@pytest.mark.parametrize("effect", [False, True], ids=["lost request", "lost answer"])
def test_destroy_again_after_a_lost_call_leaves_nothing(
    fake: FakeDigitalOcean, open_account: OpenAccount, path: str, effect: bool
) -> None:
    account = open_account()
    made = account.create(new_order(plan(account)))
    fake.fail("DELETE", path, None, effect=effect)
    with pytest.raises(OutcomeUnknown):
        account.destroy(made.ref)
    assert len(fake.droplets) == 0 or account.describe(made.ref) is not None
    open_account().destroy(made.ref)
    assert fake.exists() == NOTHING


def test_a_created_droplet_with_an_odd_answer_is_adopted(
    fake: FakeDigitalOcean, account: Account
) -> None:
    order = new_order(plan(account))
    fake.fail("POST", "/v2/droplets", wrong(b'{"droplet": {"id": 1002}}', 202), effect=True)
    made = account.create(order)
    (droplet_id,) = fake.droplets
    assert made.ref.machine_id == "1002" == str(droplet_id)


@pytest.mark.parametrize("body", WRONG_BODIES)
@pytest.mark.parametrize("call", ["account_id", "regions", "describe", "list_owned", "create"])
def test_wrong_bodies_are_no_crash_and_no_empty_answer(
    fake: FakeDigitalOcean, account: Account, body: bytes, call: str
) -> None:
    order = new_order(plan(account))
    made = account.create(order)
    fake.fail("GET", ".*", wrong(body), times=9)
    calls: dict[str, Any] = {
        "account_id": account.account_id,
        "regions": account.regions,
        "describe": lambda: account.describe(made.ref),
        "list_owned": lambda: account.list_owned([]),
        "create": lambda: account.create(order),
    }
    with pytest.raises((OutcomeUnknown, IncompleteList)):
        calls[call]()
    assert fake.exists() == ONE


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(429, "too_many_requests", "slow down", Retry_After="7"), IncompleteList),
        (SERVER_ERROR, IncompleteList),
        (None, IncompleteList),
        (wrong(b"{"), IncompleteList),
        (wrong(b'{"droplets": [], "links": {}, "meta": {"total": 5}}'), IncompleteList),
        (wrong(b'{"droplets": [], "links": {}, "meta": {"total": 2}}'), IncompleteList),
        (refusal(403, "Forbidden", "no"), CredentialsReadOnly),
    ],
    ids=["429", "500", "cut", "half", "short", "shifted", "403"],
)
def test_a_later_page_that_fails_is_never_a_shorter_list(
    fake: FakeDigitalOcean, account: Account, answer: Answer | None, kind: type[ProviderError]
) -> None:
    fake.largest_page = 2
    chosen = plan(account)
    for _ in range(5):
        account.create(new_order(chosen))
    assert sum(thing.kind == "machine" for thing in account.list_owned([])) == 5
    fake.fail("GET", "/v2/droplets", answer, skip=1)
    with pytest.raises(kind):
        account.list_owned([])


@pytest.mark.parametrize("path", ["/v2/firewalls", "/v2/account/keys", "/v2/tags"])
def test_no_list_of_the_other_things_may_fail_either(
    fake: FakeDigitalOcean, account: Account, path: str
) -> None:
    fake.fail("GET", path, SERVER_ERROR)
    with pytest.raises(IncompleteList):
        account.list_owned([])


REFUSALS = [
    (refusal(401, "Unauthorized", "Unable to authenticate you"), CredentialsWrong),
    (refusal(402, "payment_required", "update your billing"), PaymentRequired),
    (refusal(403, "Forbidden", "You are not authorized"), CredentialsReadOnly),
    (refusal(429, "too_many_requests", "slow down", Retry_After="7"), RateLimited),
    (refusal(503, "service_unavailable", "later"), OutcomeUnknown),
    (unprocessable("creating this/these droplet(s) will exceed your droplet limit"), QuotaReached),
    (unprocessable("Size is currently unavailable in this region."), NoCapacity),
    (unprocessable("User data is too long"), UserDataTooLarge),
    (unprocessable("a payment method on file is required"), PaymentRequired),
    (unprocessable("name is invalid"), ProviderError),
    (Answer(302, b"", {"Location": "https://evil.example/v2/droplets"}), ProviderError),
    (Answer(418, b"{}"), ProviderError),
]


@pytest.mark.parametrize(
    ("answer", "kind"), REFUSALS, ids=lambda value: getattr(value, "status", "")
)
def test_refusals_have_classes_sentences_and_the_clouds_request_id(
    fake: FakeDigitalOcean, account: Account, answer: Answer, kind: type[ProviderError]
) -> None:
    order = new_order(plan(account))
    fake.fail("POST", "/v2/droplets", answer)
    with pytest.raises(ProviderError) as caught:
        account.create(order)
    error = caught.value
    assert type(error) is kind
    assert error.request_id == "4d9d8375-3c56-4925-a3e7-eb137fed17e9"
    assert str(error)[0].islower() or str(error).startswith("DigitalOcean")
    assert not str(error).endswith(".\n")
    if isinstance(error, RateLimited):
        assert error.retry_after_s == 7.0
    account.destroy(order.ref)
    assert fake.exists() == NOTHING


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Ratelimit-Reset": "1"}, 0.0),
        ({}, None),
    ],
)
def test_the_wait_of_a_rate_limit_is_read(
    fake: FakeDigitalOcean, account: Account, headers: dict[str, str], seconds: float | None
) -> None:
    fake.fail(
        "GET",
        "/v2/account",
        refusal(429, "too_many_requests", "slow") and Answer(429, b"{}", headers),
    )
    with pytest.raises(RateLimited) as caught:
        account.account_id()
    assert caught.value.retry_after_s == seconds
    assert caught.value.retry == "again"


def opened(provider: Provider) -> Account:
    return provider.open(provider.selection({}), Store())


def test_a_token_that_is_not_known_says_how_to_get_one(
    fake: FakeDigitalOcean, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITALOCEAN_TOKEN", "dop_v1_expired")
    with opened(DigitalOcean()) as account, pytest.raises(CredentialsWrong) as caught:
        account.account_id()
    assert "codexctl provider login digitalocean" in caught.value.hint


def test_a_read_only_token_may_look_and_names_the_scope_it_lacks(
    fake: FakeDigitalOcean, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITALOCEAN_TOKEN", READ_ONLY_TOKEN)
    with opened(DigitalOcean()) as account:
        order: Order = new_order(plan(account))
        with pytest.raises(CredentialsReadOnly, match="lacks the scope tag:create"):
            account.create(order)
        assert account.resources(order.ref) == []


def test_limits_of_the_account_make_nothing_that_bills(
    fake: FakeDigitalOcean, account: Account
) -> None:
    fake.droplet_limit = 0
    with pytest.raises(QuotaReached) as caught:
        account.create(new_order(plan(account)))
    assert "droplet_limit_increase" in caught.value.hint
    fake.account_status = "locked"
    with pytest.raises(PaymentRequired):
        account.create(new_order(plan(account)))
    fake.account_status, fake.droplet_limit = "active", 9
    fake.sold_out.add(("lon1", "s-2vcpu-4gb"))
    with pytest.raises(NoCapacity) as none_left:
        account.create(new_order(plan(account)))
    assert "--region" in none_left.value.hint
    assert fake.hourly_bill() == 0


def test_a_droplet_that_is_busy_is_asked_again(fake: FakeDigitalOcean, account: Account) -> None:
    made = account.create(new_order(plan(account)))
    account.describe(made.ref)
    account.describe(made.ref)
    (droplet,) = fake.droplets.values()
    droplet["locked"] = True
    with pytest.raises(ProviderError) as caught:
        account.stop(made.ref)
    assert caught.value.retry == "again"


def test_a_cloud_that_cannot_be_reached_was_certainly_not_reached(
    monkeypatch: pytest.MonkeyPatch, fake: FakeDigitalOcean
) -> None:
    monkeypatch.setenv("DIGITALOCEAN_END_POINT", "http://127.0.0.1:1/v2/")
    with opened(DigitalOcean()) as account, pytest.raises(ProviderUnreachable) as caught:
        account.account_id()
    assert caught.value.retry == "again"


def test_a_region_that_answers_slowly_is_given_up_and_adopted_later(
    fake: FakeDigitalOcean, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codexctl_plugins._digitalocean_api.READ_TIMEOUT_S", 0.05)
    release = threading.Event()
    order = new_order(plan(account))
    fake.fail("POST", "/v2/droplets", hold=release)
    with pytest.raises(OutcomeUnknown, match="did not answer POST /v2/droplets"):
        account.create(order)
    release.set()
    deadline = time.monotonic() + 10
    while not fake.droplets and time.monotonic() < deadline:
        time.sleep(0.01)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "*")
    made = account.create(order)
    assert made.ref.machine_id is not None
    assert account.describe(made.ref) is not None


class Trigger(threading.Event):
    """Lets a held order through when another call comes by."""

    def __init__(self, release: threading.Event, done: Callable[[], bool]) -> None:
        super().__init__()
        self._release, self._done = release, done

    def wait(self, timeout: float | None = None) -> bool:
        self._release.set()
        deadline = time.monotonic() + 10
        while not self._done() and time.monotonic() < deadline:
            time.sleep(0.01)
        return True


def test_an_order_that_is_carried_out_late_does_not_leave_a_second_machine(
    fake: FakeDigitalOcean, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = new_order(plan(account))
    release = threading.Event()
    fake.fail("POST", "/v2/droplets", hold=release)
    with monkeypatch.context() as patch:
        patch.setattr("codexctl_plugins._digitalocean_api.READ_TIMEOUT_S", 0.05)
        with pytest.raises(OutcomeUnknown):
            account.create(order)
    # The next order has looked, and found nothing, when the first one comes through.
    fake.fail("POST", "/v2/tags", hold=Trigger(release, lambda: bool(fake.droplets)))
    made = account.create(order)
    assert fake.exists() == ONE
    assert fake.count("POST", "/v2/droplets") == 2
    assert made.ref.machine_id == str(*fake.droplets)


def test_clocks_that_differ_do_not_matter(fake: FakeDigitalOcean, account: Account) -> None:
    fake.clock = lambda: 4_000_000_000.0
    made = account.create(new_order(plan(account)))
    assert account.describe(made.ref) is not None
    assert fake.count("GET", ".*/actions") == 0
    assert TOKEN not in repr(account)
