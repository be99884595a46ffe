"""What a plan says before it is confirmed."""

from __future__ import annotations

from codexctl.cli.provision_view import plan_notes


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


def test_the_relay_of_the_pairing_is_said() -> None:
    assert notes()[1:] == ["it is paired with this device through https://relay.example"]
    for without in ({"relay": ""}, {"pair": False}):
        assert len(notes(**without)) == 1
