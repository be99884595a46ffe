"""The fake holds callers to the API's own description, and itself too."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.clouds.digitalocean_cloud import TOKEN
from tests.clouds.fake_digitalocean import FakeDigitalOcean, fake_digitalocean
from tests.clouds.openapi_check import needs_description


def call(fake: FakeDigitalOcean, method: str, path: str, body: Any = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(fake.url + path, data=data, method=method)
    request.add_header("Authorization", f"Bearer {TOKEN}")
    request.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@needs_description
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "droplets/", None),
        ("GET", "droplets?per_page=500", None),
        ("GET", "account?per_page=200", None),
        ("DELETE", "droplets/None", None),
        ("DELETE", "droplets/5", {}),
        ("POST", "tags", {"name": "with space"}),
        ("POST", "tags", {"name": "ok", "colour": "red"}),
        ("POST", "droplets", {"name": "x", "size": "s", "image": None}),
        ("POST", "firewalls", {"name": "no rules"}),
    ],
)
def test_a_call_that_the_api_does_not_describe_is_noticed(
    method: str, path: str, body: Any
) -> None:
    with FakeDigitalOcean() as fake:
        try:
            call(fake, method, path, body)
        except (urllib.error.URLError, OSError):
            pass  # the fake may fall over what the real cloud would refuse
        assert len(fake.violations) >= 1


@needs_description
def test_an_answer_that_the_api_does_not_describe_is_noticed() -> None:
    with FakeDigitalOcean() as fake:
        del fake.sizes[0]["price_hourly"]
        call(fake, "GET", "sizes")
        assert "price_hourly" in str(fake.violations)


def test_pages_have_links_until_the_last() -> None:
    with fake_digitalocean() as fake:
        fake.largest_page = 2
        first = fake.get_sizes({"page": "1"}, {}).body
        last = fake.get_sizes({"page": "3"}, {}).body
        assert isinstance(first, dict)
        assert isinstance(last, dict)
        assert first["links"]["pages"]["next"].endswith("sizes?page=2&per_page=2")
        assert (last["links"], len(last["sizes"]), last["meta"]) == ({}, 1, {"total": 5})


def test_keys_can_be_listed_ten_times_a_minute() -> None:
    with fake_digitalocean() as fake:
        now = 1000.0
        fake.clock = lambda: now
        assert [call(fake, "GET", "account/keys") for _ in range(11)][-2:] == [200, 429]
        now += 61
        assert call(fake, "GET", "account/keys") == 200


def test_tags_differ_by_more_than_case() -> None:
    with fake_digitalocean() as fake:
        call(fake, "POST", "tags", {"name": "Prod"})
        call(fake, "POST", "tags", {"name": "prod"})
        assert list(fake.tags.values()) == ["Prod"]
