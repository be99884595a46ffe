"""The tcp channel: one TCP connection from this host, for `codexctl forward`."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from codexctl.errors import ConnectionFailed, Refused, UsageError
from codexctl.host.context import HostContext
from codexctl.session.channel import (
    ChannelClosed,
    DataReceived,
    EofReceived,
    HostChannel,
)
from codexctl.wire.channel import DATA_BYTES

CONNECT_TIMEOUT_S = 10.0


async def serve_tcp(channel: HostChannel, context: HostContext) -> None:
    """Connect and carry bytes both ways. Refused without the scope, or by policy."""
    host, port = channel.params.get("host") or "127.0.0.1", channel.params.get("port")
    if not isinstance(host, str) or not isinstance(port, int) or not 0 < port < 65536:
        raise UsageError("a forward names a host and a port")
    where = f"{host[:255]}:{port}"
    if "exec" not in channel.peer.scopes:
        context.record("forward", channel.peer, where, "denied")
        raise Refused(
            "this device may not forward connections", hint="pair it again with the scope exec"
        )
    if not _is_loopback(host) and context.policy.network == "never":
        context.record("forward", channel.peer, where, "denied")
        raise Refused(
            f"the host's policy allows no network, so no connection to {where}",
            hint="on the host, see: codexctl host policy show",
        )
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port, limit=2 * DATA_BYTES)
    except (OSError, TimeoutError) as error:
        context.record("forward", channel.peer, where, "failed")
        reason = getattr(error, "strerror", None) or "no answer"
        raise ConnectionFailed(f"the host cannot connect to {where}: {reason}") from error
    context.record("forward", channel.peer, where, "connected")
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await carry(channel, reader, writer)


async def carry(
    channel: HostChannel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Accept, and move bytes of stream 0 both ways until either side ends; the writer is closed."""
    try:
        await channel.accept({})
        async with asyncio.TaskGroup() as tasks:
            inward = tasks.create_task(_from_device(channel, writer))
            await _to_device(channel, reader)
            await inward
    except* (ChannelClosed, OSError):
        pass
    finally:
        writer.close()


async def _to_device(channel: HostChannel, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(DATA_BYTES):
        await channel.write(0, data)
    await channel.write_eof(0)


async def _from_device(channel: HostChannel, writer: asyncio.StreamWriter) -> None:
    while (event := await channel.receive()) is not None:
        if isinstance(event, DataReceived):
            writer.write(event.data)
            await writer.drain()
            channel.consumed(len(event.data))
        elif isinstance(event, EofReceived) and writer.can_write_eof():
            writer.write_eof()
    # The device has closed the channel: nobody reads what the other direction would bring.
    writer.transport.abort()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
