"""AWS passes the contract's own tests, on moto and the front that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from codexctl_plugins.aws import Aws

from codexctl.provision.conformance import Fault, ProviderConformance
from codexctl.provision.model import Provider
from tests.clouds.fake_aws import (
    EXPIRED_KEY,
    SECRET_KEY,
    Answer,
    FakeAws,
    ec2_error,
)

FOREVER = 10_000


class TestAws(ProviderConformance):
    @pytest.fixture(autouse=True)
    def _cloud(self, aws: FakeAws) -> None:
        self.aws = aws

    def provider(self) -> Provider:
        return Aws()

    def options(self) -> dict[str, Any]:
        return {"region": "eu-west-2"}

    def secret_texts(self) -> list[str]:
        return [SECRET_KEY]

    def provoke(self, fault: Fault) -> AbstractContextManager[None] | None:
        broken = ec2_error("InternalError", status=500)
        ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "missing": lambda: _environment(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None),
            "wrong": lambda: _environment(AWS_ACCESS_KEY_ID="AKIANOBODY"),
            "expired": lambda: _environment(AWS_ACCESS_KEY_ID=EXPIRED_KEY),
            "read-only": lambda: self._fail("RunInstances", ec2_error("UnauthorizedOperation")),
            "quota": lambda: self._fail("RunInstances", ec2_error("VcpuLimitExceeded")),
            "payment": lambda: self._fail("RunInstances", ec2_error("OptInRequired")),
            "no-capacity": lambda: self._fail(
                "RunInstances", ec2_error("InsufficientInstanceCapacity", status=500)
            ),
            "rate-limit": lambda: self._fail(".*", ec2_error("RequestLimitExceeded", status=503)),
            "unreachable": lambda: _environment(AWS_ENDPOINT_URL="http://127.0.0.1:1"),
            "lost-answer": lambda: self._fail("RunInstances", None, effect=True),
            "server-error": lambda: self._fail("Describe.*", broken),
            "list-page": lambda: self._fail("DescribeVolumes", None),
        }
        return ways[fault]()

    @contextmanager
    def _fail(self, action: str, answer: Answer | None, **more: Any) -> Iterator[None]:
        fault = self.aws.fail(action, answer, times=FOREVER, **more)
        try:
            yield
        finally:
            self.aws.mend(fault)


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            if value is None:
                patch.delenv(name)
            else:
                patch.setenv(name, value)
        yield
