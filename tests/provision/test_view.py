"""What a plan says before it is confirmed."""

from __future__ import annotations

import pytest

from codexctl.cli.provision_view import plan_notes
from codexctl.paths import ENV_RELAY_TOKEN as ENV_TOKEN


class _Existing:
    """As much of a provider as the notes look at."""

    class capabilities:
        creates = False


def notes(**settings: object) -> list[str]:
    class _Plan:
        lines = ("as the provider says",)

    class _Settings:
        relay, pair, bare = "https://relay.example", True, False

    for name, value in settings.items():
        setattr(_Settings, name, value)
    return plan_notes(_Existing(), _Plan(), _Settings())  # type: ignore[arg-type]


def test_a_token_that_will_stay_on_the_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_TOKEN, raising=False)
    assert notes() == ["as the provider says"]
    monkeypatch.setenv(ENV_TOKEN, "cxr_secret")
    (_, told) = notes()
    assert "will stay on that machine" in told
    assert "cxr_secret" not in told
    for without in ({"relay": ""}, {"pair": False}, {"bare": True}):
        assert len(notes(**without)) == 1
