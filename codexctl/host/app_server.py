"""The channel kind app-server: a client of its own at this host's official app-server.

Its bytes are those of the app-server's socket, a WebSocket of JSON-RPC, and pass untouched both
ways on stream 0. Whoever is connected sees and drives every thread of this host, beside its other
devices.
"""

from __future__ import annotations

import asyncio

from codexctl.errors import ConnectionFailed, Refused
from codexctl.host.context import HostContext
from codexctl.host.forward import carry
from codexctl.session.channel import HostChannel
from codexctl.wire.channel import DATA_BYTES

# The app-server does whatever its client says: it runs commands and answers its own questions.
SCOPES = frozenset(("view", "exec", "approve"))


async def serve_app_server(channel: HostChannel, context: HostContext) -> None:
    """Connect a device to the app-server. Refused without all scopes; AgentUnavailable.

    With `probe` it is only seen to that there is one.
    """
    peer = channel.peer
    missing = sorted(SCOPES - (peer.scopes & context.policy.scopes))
    if missing:
        context.record("attach-agent", peer, "app-server", "denied", reason="scope")
        raise Refused(
            f"this device may not drive this host's codex: it lacks the scope {missing[0]}",
            hint="pair it again, on the host: codexctl pair --show --scope "
            + " --scope ".join(sorted(SCOPES)),
        )
    path = await context.agent.socket()
    if channel.params.get("probe") is True:
        await channel.accept({})
        return
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=2 * DATA_BYTES)
    except OSError as error:
        raise ConnectionFailed(
            f"the app-server of {context.name} does not answer: {error.strerror or error}",
            hint="see there: codexctl doctor",
        ) from error
    context.record("attach-agent", peer, "app-server", "connected", where=context.workspace)
    await carry(channel, reader, writer)
