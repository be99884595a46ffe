"""The channel kind app-server: a client of its own at this host's official app-server.

Its bytes are those of a WebSocket of JSON-RPC, both ways on stream 0. Whoever is connected sees and
drives every thread of this host, beside its other devices, within the host's policy: each message
passes codexctl.agent.attached.
"""

from __future__ import annotations

import asyncio

from codexctl.errors import ConnectionFailed, Refused
from codexctl.host.context import HostContext
from codexctl.host.forward import carry
from codexctl.session.channel import HostChannel
from codexctl.wire.channel import DATA_BYTES

# Whoever is there starts turns and answers their questions.
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
    await context.agent.server()  # AgentUnavailable says why there is none
    if channel.params.get("probe") is True:
        await channel.accept({})
        return
    from codexctl.agent.attached import gate

    try:
        async with gate(context, peer) as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=2 * DATA_BYTES)
            context.record("attach-agent", peer, "app-server", "connected", where=context.workspace)
            await carry(channel, reader, writer)
    except OSError as error:
        raise ConnectionFailed(
            f"the app-server of {context.name} does not answer: {error.strerror or error}",
            hint="see there: codexctl doctor",
        ) from error
