"""`codexctl relay`: run a relay, give out its tokens, see whether one answers."""

from __future__ import annotations

from codexctl.cli.lazy import LazyGroup

COMMANDS = {
    "serve": ("codexctl.cli.relay_serve:serve", "Run a relay until it is stopped"),
    "token": ("codexctl.cli.relay_token:token", "Create, list and revoke bearer tokens"),
    "ping": ("codexctl.cli.relay_ping:ping", "Latency, version and clock of a relay"),
}

relay = LazyGroup(
    "relay",
    table=COMMANDS,
    help="Run a relay: the meeting point of hosts and devices, which sees ciphertext only.",
)
