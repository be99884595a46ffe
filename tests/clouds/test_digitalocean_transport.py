"""Every weakness of python-digitalocean that was seen, closed."""

from __future__ import annotations

import copy
import json
import logging
import traceback
from pathlib import Path

import pytest
from codexctl_plugins import _digitalocean_api as api
from codexctl_plugins.digitalocean import DigitalOcean

from codexctl.errors import CodexctlError, UsageError
from codexctl.provision.errors import IncompleteList, OutcomeUnknown, ProviderError
from codexctl.provision.model import Account
from codexctl.secret import Secret
from tests.clouds.conftest import Store, new_order
from tests.clouds.digitalocean_answers import Answer
from tests.clouds.digitalocean_cloud import TOKEN
from tests.clouds.fake_digitalocean import FakeDigitalOcean
from tests.clouds.test_digitalocean import ONE, plan

BAIT = "VERY-SECRET"


@pytest.fixture
def transport(fake: FakeDigitalOcean) -> api.Transport:
    return api.Transport(fake.url, Secret(TOKEN))


@pytest.mark.parametrize(
    ("typed", "base"),
    [
        ("https://api.digitalocean.com", "https://api.digitalocean.com/v2/"),
        ("https://api.digitalocean.com/", "https://api.digitalocean.com/v2/"),
        ("https://api.digitalocean.com/v2", "https://api.digitalocean.com/v2/"),
        ("https://api.digitalocean.com/v2/", "https://api.digitalocean.com/v2/"),
        ("https://proxy.example/do/v2", "https://proxy.example/do/v2/"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v2/"),
        ("http://localhost:8080/v2", "http://localhost:8080/v2/"),
        ("http://[::1]:8080/v2", "http://[::1]:8080/v2/"),
    ],
)
def test_the_base_url_ends_where_paths_can_be_joined(typed: str, base: str) -> None:
    assert api.base_url(typed) == base


@pytest.mark.parametrize(
    "typed",
    [
        "http://api.digitalocean.com/v2/",
        "ftp://x",
        "",
        "api.digitalocean.com",
        "https://",
        "https://a:b@api.digitalocean.com",
        "https://x/?q",
        "http://127.0.0.1.evil.example/",
    ],
)
def test_a_base_url_that_would_leak_the_token_is_refused(typed: str) -> None:
    with pytest.raises(UsageError):
        api.base_url(typed)


def test_objects_keep_the_endpoint_and_none_holds_the_token(
    fake: FakeDigitalOcean, transport: api.Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITALOCEAN_ACCESS_TOKEN", "from-the-environment")
    monkeypatch.setenv("DIGITALOCEAN_END_POINT", "https://elsewhere.example/v2/")
    droplet = api.Droplet(transport, id=5, user_data=Secret(BAIT))
    for thing in (api.Api(transport), droplet, api.Key(transport, id=5), transport):
        shown = repr(thing) + str(vars(thing))
        assert TOKEN not in shown
        assert BAIT not in shown
        assert "from-the-environment" not in shown
    assert droplet.end_point == fake.url
    with pytest.raises(ProviderError):
        droplet.destroy()
    assert fake.count("DELETE", "/v2/droplets/5") == 1


def test_objects_are_not_pickled_nor_copied(transport: api.Transport) -> None:
    for thing in (transport, api.Api(transport), api.Droplet(transport, id=5)):
        with pytest.raises(TypeError):
            thing.__reduce_ex__(4)
        with pytest.raises(TypeError):
            copy.deepcopy(thing)


def test_netrc_does_not_replace_the_token(
    fake: FakeDigitalOcean, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login thief password thief\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    account.account_id()
    assert fake.calls[-1].headers["Authorization"] == f"Bearer {TOKEN}"


def test_the_token_follows_neither_redirects_nor_page_links(
    fake: FakeDigitalOcean, account: Account, transport: api.Transport
) -> None:
    with FakeDigitalOcean() as elsewhere:
        elsewhere.tokens[TOKEN] = {"*"}
        moved = {"Location": f"{elsewhere.url}account"}
        fake.fail("GET", "/v2/account", Answer(307, b"{}", moved))
        with pytest.raises(ProviderError, match="answered 307"):
            account.account_id()
        page = {"regions": [], "meta": {"total": 9}}
        page |= {"links": {"pages": {"next": f"{elsewhere.url}regions?page=2"}}}
        fake.fail("GET", "/v2/regions", Answer(200, page))
        with pytest.raises(IncompleteList):
            account.regions()
        with pytest.raises(ProviderError, match="another address"):
            transport.request("GET", f"{elsewhere.url}regions", {})
        assert elsewhere.calls == []


def test_a_page_link_that_never_ends_does(fake: FakeDigitalOcean, account: Account) -> None:
    region = fake.regions[0]
    page = {"regions": [region], "meta": {"total": 1}}
    page |= {"links": {"pages": {"next": f"{fake.url}regions?page=1"}}}
    fake.fail("GET", "/v2/regions", Answer(200, page), times=10_000)
    with pytest.raises(IncompleteList):
        account.regions()
    assert fake.count("GET", "/v2/regions") == api.MAX_PAGES


def test_nothing_secret_is_logged_or_shown_when_a_call_fails(
    fake: FakeDigitalOcean, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    order = new_order(plan(account), user_data=Secret(f"#cloud-config\n# {BAIT}\n"))
    for answer in (None, Answer(500, b"{}"), Answer(202, b"{}")):
        fake.fail("POST", "/v2/droplets", answer)
        with pytest.raises(OutcomeUnknown) as caught:
            account.create(order)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert BAIT not in shown
        assert TOKEN not in shown
    account.create(order)
    assert fake.exists() == ONE
    assert BAIT not in caplog.text
    assert TOKEN not in caplog.text
    assert BAIT not in repr(account) + repr(order) + str(vars(account))


def test_every_call_has_a_timeout(
    transport: api.Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    real = transport._session.request

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(kwargs["timeout"])
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(transport._session, "request", spy)
    api.Api(transport).read("account", "account")
    assert seen == [(api.CONNECT_TIMEOUT_S, api.READ_TIMEOUT_S)]


@pytest.mark.parametrize("kind", [api.Droplet, api.Key])
def test_a_thing_without_an_id_asks_for_nothing(
    fake: FakeDigitalOcean, transport: api.Transport, kind: type
) -> None:
    with pytest.raises(AssertionError):
        kind(transport).destroy()
    assert fake.calls == []


def test_bodies_and_paths_are_as_the_api_describes_them(
    fake: FakeDigitalOcean, account: Account
) -> None:
    made = account.create(new_order(plan(account)))
    account.destroy(made.ref)
    for call in fake.calls:
        assert not call.path.endswith("/")
        assert call.method != "DELETE" or call.body == b""
        assert None not in (json.loads(call.body).values() if call.body else ())


def test_proxies_of_the_environment_are_still_used(
    account: Account, monkeypatch: pytest.MonkeyPatch, fake: FakeDigitalOcean
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with pytest.raises(CodexctlError, match="cannot reach DigitalOcean"):
        account.account_id()
    assert fake.calls == []


def test_the_endpoint_is_part_of_the_selection(
    fake: FakeDigitalOcean, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = DigitalOcean()
    selection = provider.selection({"context": None})
    assert selection == {"endpoint": fake.url}
    monkeypatch.delenv("DIGITALOCEAN_END_POINT")
    with provider.open(selection, Store()) as account:
        account.account_id()
    assert fake.count("GET", "/v2/account") == 1
