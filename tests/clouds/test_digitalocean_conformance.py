"""DigitalOcean passes the contract's own tests, on the fake that is held to the API description."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from codexctl_plugins.digitalocean import DigitalOcean

from codexctl.provision.conformance import Fault, ProviderConformance
from codexctl.provision.model import Provider
from tests.clouds.digitalocean_answers import Answer, refusal
from tests.clouds.digitalocean_cloud import READ_ONLY_TOKEN, TOKEN
from tests.clouds.fake_digitalocean import FakeDigitalOcean

FOREVER = 10_000


class TestDigitalOcean(ProviderConformance):
    @pytest.fixture(autouse=True)
    def _cloud(self, fake: FakeDigitalOcean) -> None:
        self.fake = fake
        fake.largest_page = 2
        # Each test is many processes' worth of lists.
        fake.key_lists_a_minute = FOREVER

    def provider(self) -> Provider:
        return DigitalOcean()

    def options(self) -> dict[str, Any]:
        return {"region": "lon1"}

    def secret_texts(self) -> list[str]:
        return [TOKEN, READ_ONLY_TOKEN]

    def provoke(self, fault: Fault) -> AbstractContextManager[None] | None:
        fake = self.fake
        ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "missing": lambda: _environment(DIGITALOCEAN_TOKEN=None),
            "wrong": lambda: _environment(DIGITALOCEAN_TOKEN="dop_v1_unknown"),
            "read-only": lambda: _set(fake.tokens, TOKEN, {"read"}),
            "quota": lambda: _attribute(fake, "droplet_limit", 0),
            "payment": lambda: _attribute(fake, "account_status", "locked"),
            "no-capacity": lambda: _attribute(fake, "sold_out", {("lon1", "s-2vcpu-4gb")}),
            "unreachable": lambda: _environment(DIGITALOCEAN_END_POINT="http://127.0.0.1:1/"),
            "rate-limit": lambda: self._fail(
                "", ".*", refusal(429, "too_many_requests", "slow down", Retry_After="3")
            ),
            "lost-answer": lambda: self._fail("POST", "/v2/droplets", None, effect=True),
            "server-error": lambda: self._fail("GET", ".*", refusal(500, "server_error", "oops")),
            "list-page": lambda: self._fail("GET", "/v2/(droplets|tags)", None, skip=1),
        }
        # DigitalOcean does not tell an expired token from one that it never knew.
        return ways[fault]() if fault in ways else None

    @contextmanager
    def _fail(self, method: str, path: str, answer: Answer | None, **more: Any) -> Iterator[None]:
        fault = self.fake.fail(method, path, answer, times=FOREVER, **more)
        try:
            yield
        finally:
            self.fake.mend(fault)


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            if value is None:
                patch.delenv(name)
            else:
                patch.setenv(name, value)
        yield
    assert os.environ["DIGITALOCEAN_TOKEN"] == TOKEN


@contextmanager
def _attribute(thing: object, name: str, value: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thing, name, value)
        yield


@contextmanager
def _set(mapping: dict[str, Any], name: str, value: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mapping, name, value)
        yield
