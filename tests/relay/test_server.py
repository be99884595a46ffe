"""A real relay and real WebSockets: frames reach their stream's other end and nobody else."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from codexctl.wire import relay as wire
from tests.relay.ends import (
    OTHER_KEY,
    client_frame,
    closed_with,
    data,
    frame,
    new_stream,
    reset_of,
    run,
    serving,
    upgrade_request,
)


def test_frames_go_both_ways_unchanged(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host, device = await ends.host(), await ends.device()
            stream = new_stream()
            for size in (0, 1, 125, 126, 8191, 8193, 65_000):
                message = data(stream, os.urandom(size))
                await device.send(message)
                assert await host.recv() == message
                await host.send(message)
                assert await device.recv() == message
            assert ends.figure("frames") == 14
            assert ends.figure("streams") == 1

    run(test)


def test_streams_of_one_host_do_not_mix(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host = await ends.host()
            devices = [await ends.device() for _ in range(5)]
            streams = [new_stream() for _ in devices]
            for device, stream in zip(devices, streams, strict=True):
                await device.send(frame(stream))
                assert await host.recv() == frame(stream)
            for seq in range(20):
                for stream in streams:
                    await host.send(data(stream, stream.encode(), seq))
            for device, stream in zip(devices, streams, strict=True):
                for seq in range(20):
                    assert await device.recv() == data(stream, stream.encode(), seq)

    run(test)


def test_another_owner_with_the_same_names_is_another_world(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            bert = ends.owner_token("bert")
            host, device = await ends.host(), await ends.device()
            assert (await ends.connect("box", bert)).status == 404
            berts_host = await ends.host("box", bert, OTHER_KEY)
            berts_device = await ends.device("box", bert)
            stream = new_stream()
            await device.send(data(stream, b"anna's"))
            await berts_device.send(data(stream, b"bert's"))
            assert await host.recv() == data(stream, b"anna's")
            assert await berts_host.recv() == data(stream, b"bert's")
            await host.send(data(stream, b"to anna"))
            assert await device.recv() == data(stream, b"to anna")
            # Nothing else has come: what each gets next is its own.
            await berts_host.send(data(stream, b"to bert"))
            assert await berts_device.recv() == data(stream, b"to bert")

    run(test)


def test_a_stream_belongs_to_the_token_that_claimed_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host = await ends.host()
            phone, _ = await ends.device_token(name="phone")
            laptop, _ = await ends.device_token(name="laptop")
            stream = new_stream()
            device = await ends.device("box", phone)
            await device.send(frame(stream))
            assert await host.recv() == frame(stream)
            thief = await ends.device("box", laptop)
            await thief.send(frame(stream))
            assert await reset_of(thief) == (stream, "stream-taken")
            await device.close()
            assert await reset_of(host) == (stream, "peer-gone")
            await thief.send(frame(stream))
            assert await reset_of(thief) == (stream, "stream-taken")
            again = await ends.device("box", phone)
            await again.send(frame(stream))
            assert await host.recv() == frame(stream)

    run(test)


def test_a_claim_outlives_the_relay(tmp_path: Path) -> None:
    async def test() -> None:
        stream = new_stream()
        async with serving(tmp_path) as ends:
            token = ends.token
            await ends.host()
            phone, _ = await ends.device_token(name="phone")
            laptop, _ = await ends.device_token(name="laptop")
            device = await ends.device("box", phone)
            await device.send(frame(stream))
            await ends.until(lambda: ends.figure("streams") == 1)
        async with serving(tmp_path) as ends:
            ends.token = token
            host = await ends.host()
            thief = await ends.device("box", laptop)
            await thief.send(frame(stream))
            assert await reset_of(thief) == (stream, "stream-taken")
            device = await ends.device("box", phone)
            await device.send(frame(stream))
            assert await host.recv() == frame(stream)

    run(test)


def test_the_same_device_takes_its_stream_to_a_new_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host, old = await ends.host(), await ends.device()
            stream = new_stream()
            await old.send(frame(stream))
            assert await host.recv() == frame(stream)
            new = await ends.device()  # the relay has not noticed that the old one is dead
            await new.send(frame(stream, wire.Resume(5)))
            assert await host.recv() == frame(stream, wire.Resume(5))
            await host.send(data(stream, b"for the new one"))
            assert await new.recv() == data(stream, b"for the new one")

    run(test)


def test_both_sides_hear_at_once_that_the_other_is_gone(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host, device = await ends.host(), await ends.device()
            stream = new_stream()
            await device.send(frame(stream))
            await host.recv()
            host.transport.abort()  # no close frame: the machine crashed
            assert await reset_of(device) == (stream, "peer-gone")
            for seq in range(50):  # what was on its way is not answered one by one
                await device.send(data(stream, b"into the void", seq))
            again = await ends.device()  # a new connection hears it anew
            await again.send(frame(stream))
            assert await reset_of(again) == (stream, "peer-gone")
            host = await ends.host()
            await host.send(frame(stream, wire.Resume(3)))
            assert await again.recv() == frame(stream, wire.Resume(3))
            again.transport.abort()
            assert await reset_of(host) == (stream, "peer-gone")
            host = await ends.host()
            await host.send(data(stream, b"into the void"))
            assert await reset_of(host) == (stream, "peer-gone")
            await host.send(data(stream, b"into the void"))
            await device.send(frame(stream))
            assert await host.recv() == frame(stream)

    run(test)


def test_a_host_has_one_connection_the_newest(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            old, device = await ends.host(), await ends.device()
            stream = new_stream()
            await device.send(frame(stream))
            await old.recv()
            new = await ends.host()
            assert await closed_with(old) == 4001
            await device.send(data(stream, b"on"))
            assert await new.recv() == data(stream, b"on")

    run(test)


def test_the_same_key_keeps_its_registration_and_another_key_replaces_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            first = (await ends.register()).json["executor_registration_id"]
            host = await ends.host()
            again = (await ends.register()).json["executor_registration_id"]
            assert first == again
            assert ends.online()
            other = (await ends.register(key=OTHER_KEY)).json["executor_registration_id"]
            assert other != first
            assert await closed_with(host) == 4001
        async with serving(tmp_path) as ends:
            kept = (await ends.register(key=OTHER_KEY)).json["executor_registration_id"]
            assert kept == other

    run(test)


def test_a_websocket_url_works_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            url = (await ends.register()).json["url"]
            await ends.socket(url)
            with pytest.raises(InvalidStatus) as caught:
                await ends.socket(url)
            assert caught.value.response.status_code == 404
            assert b"used up or expired" in (caught.value.response.body or b"")

    run(test)


def test_a_call_and_its_websocket_can_share_one_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            url = (await ends.register()).json["url"]
            reader, writer = await ends.raw()
            writer.write(f"GET /v1/health HTTP/1.1\r\nHost: {ends.address}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
            stream = new_stream()
            # The first frame comes in the same packet as the upgrade.
            message = data(stream, b"early")
            writer.write(upgrade_request(ends, url) + client_frame(2, message))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # the example of RFC 6455
            assert (await reader.readexactly(2))[0] == 0x82  # the reset: nobody claimed the stream

    run(test)


def test_a_revoked_token_is_cut_at_once_and_by_another_process_within_a_second(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host = await ends.host()
            phone, phone_id = await ends.device_token(name="phone")
            tablet, tablet_id = await ends.device_token(name="tablet")
            one, two = await ends.device("box", phone), await ends.device("box", tablet)
            stream = new_stream()
            await one.send(frame(stream))
            assert await host.recv() == frame(stream)
            assert (await ends.call("DELETE", f"/v1/tokens/{phone_id}")).status == 204
            assert await closed_with(one) == 4002
            assert await reset_of(host) == (stream, "peer-gone")
            assert (await ends.connect("box", phone)).status == 401
            # What `codexctl relay token revoke` does in its own process.
            from codexctl.relay.store import Store

            other = Store.open(ends.relay.config.home)
            try:
                other.revoke(tablet_id)
            finally:
                other.close()
            assert await closed_with(two) == 4002

    run(test)


def test_an_expired_token_is_cut(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            token = ends.owner_token("anna", expires_in_s=1)
            host = await ends.host("den", token)
            assert await closed_with(host) == 4003
            assert (await ends.register("den", token)).status == 401

    run(test)


def test_a_draining_relay_tells_everybody_to_come_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, drain_s=5.0) as ends:
            host, device = await ends.host(), await ends.device()
            reader, writer = await ends.raw()
            ready = asyncio.Event()

            async def ask_on_an_open_connection() -> bytes:
                # A balancer's own connection, opened before.
                writer.write(f"GET /v1/health HTTP/1.1\r\nHost: {ends.address}\r\n\r\n".encode())
                await reader.readuntil(b"}\n")
                ready.set()
                await ends.until(lambda: ends.figure("draining") == 1)
                writer.write(f"GET /v1/health HTTP/1.1\r\nHost: {ends.address}\r\n\r\n".encode())
                return await reader.readuntil(b"}\n")

            slow = await ends.host("den")
            slow.transport.pause_reading()  # keeps the drain from ending before it was asked
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(ask_on_an_open_connection())
                await ready.wait()
                drain = group.create_task(ends.relay.drain())
                assert await closed_with(host) == 1012
                assert await closed_with(device) == 1012
                await asked
                slow.transport.resume_reading()
                await drain
            assert b'"draining"' in asked.result()
            with pytest.raises(ConnectionRefusedError):
                await ends.raw()

    run(test)


def test_a_drain_does_not_wait_for_who_does_not_answer(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, drain_s=0.2) as ends:
            host = await ends.host()
            host.transport.pause_reading()
            await ends.relay.drain()
            await ends.relay.until_drained()
            assert not ends.online()
            host.transport.resume_reading()

    run(test)
