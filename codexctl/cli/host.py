"""`codexctl host`: run this machine as a host, install that as a service, look at its policy."""

from __future__ import annotations

from codexctl.cli.lazy import LazyGroup

COMMANDS = {
    "serve": ("codexctl.cli.host_serve:serve", "Serve this machine's workspace until stopped"),
    "install": ("codexctl.cli.host_install:install", "Run it as a service of yours, or no more"),
    "agent": ("codexctl.cli.host_agent:agent", "Serve the agent to codexctl over SSH"),
    "policy": ("codexctl.cli.host_policy:policy", "Check and show what devices may do here"),
}

host = LazyGroup(
    "host",
    table=COMMANDS,
    help="Run this machine as a host: where commands, threads and files live.",
)
