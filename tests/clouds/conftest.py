"""Fixtures of the cloud tests: a fake DigitalOcean, spoken to as described, and an order."""

from __future__ import annotations

import base64
import os
import secrets as random_source
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from codexctl_plugins.aws import Aws
from codexctl_plugins.digitalocean import DigitalOcean

from codexctl.provision.model import Account, Order, Plan, Ref, Tags
from codexctl.secret import Secret
from tests.clouds.digitalocean_cloud import TOKEN
from tests.clouds.fake_aws import KEY, SECRET_KEY, FakeAws, moto_server, reset
from tests.clouds.fake_digitalocean import FakeDigitalOcean, fake_digitalocean

OWNER = "00112233445566aa"
USER_DATA = "#cloud-config\n# host key: VERY-SECRET-HOST-KEY\n"


class Store:
    """A SecretStore of a dict."""

    def __init__(self) -> None:
        self.values: dict[str, Secret] = {}

    def get(self, name: str) -> Secret | None:
        return self.values.get(name)

    def put(self, name: str, value: Secret) -> str:
        self.values[name] = value
        return "the test's store"

    def delete(self, name: str) -> bool:
        return self.values.pop(name, None) is not None


def public_key(workspace_id: str) -> str:
    """An ed25519 public key line; random, for nothing is ever signed with it."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + random_source.token_bytes(32)
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} codexctl-{workspace_id}"


def new_order(plan: Plan, workspace_id: str = "", **changes: Any) -> Order:
    workspace_id = workspace_id or random_source.token_hex(16)
    values: dict[str, Any] = {
        "ref": Ref(workspace_id, plan.region),
        "name": "api-work",
        "plan": plan,
        "tags": Tags(workspace_id, OWNER, 1_900_000_000),
        "public_key": public_key(workspace_id),
        "user_data": Secret(USER_DATA),
    }
    return Order(**(values | changes))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[FakeDigitalOcean]:
    with fake_digitalocean() as cloud:
        monkeypatch.setenv("DIGITALOCEAN_END_POINT", cloud.url)
        monkeypatch.setenv("DIGITALOCEAN_TOKEN", TOKEN)
        monkeypatch.delenv("DIGITALOCEAN_ACCESS_TOKEN", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "*")
        yield cloud


OpenAccount = Callable[..., Account]


@pytest.fixture
def open_account(fake: FakeDigitalOcean) -> Iterator[OpenAccount]:
    """Opens the account as another process would: nothing is shared but the cloud."""
    opened: list[Account] = []

    def opener(**options: Any) -> Account:
        provider = DigitalOcean()
        opened.append(provider.open(provider.selection(options), Store()))
        return opened[-1]

    yield opener
    for account in opened:
        account.close()


@pytest.fixture
def account(open_account: OpenAccount) -> Account:
    return open_account()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with moto_server(tmp_path_factory.mktemp("moto")) as port:
        yield port


@pytest.fixture
def aws(moto: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeAws]:
    reset(moto)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with FakeAws(moto) as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "*")
        yield cloud


@pytest.fixture
def open_aws(aws: FakeAws) -> Iterator[OpenAccount]:
    opened: list[Account] = []

    def opener(**options: Any) -> Account:
        provider = Aws()
        opened.append(provider.open(provider.selection(options), Store()))
        return opened[-1]

    yield opener
    for account in opened:
        account.close()
