"""One slow receiver holds up its own sender and nobody else, and nothing queues without bound."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection

from codexctl.relay import server
from codexctl.relay.limits import KIB, MIB, READ_BYTES, Limits
from codexctl.wire import relay as wire
from tests.relay.ends import (
    Ends,
    client_frame,
    data,
    frame,
    new_stream,
    open_raw_socket,
    receive_exactly,
    reset_of,
    run,
    serving,
)

BLOCK = os.urandom(60_000)


async def silent_host(ends: Ends, environment: str = "box") -> socket.socket:
    """A host that reads nothing by itself."""
    opened = await open_raw_socket(ends, (await ends.register(environment)).json["url"])
    await ends.until(lambda: ends.online(environment))
    return opened


async def silent_device(ends: Ends, host: ClientConnection, *where: str) -> str:
    """A device that claims a stream, of which the host hears, and then reads nothing."""
    opened = await open_raw_socket(ends, (await ends.connect(*where)).json["url"])
    stream = new_stream()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(opened, client_frame(2, frame(stream)))
    assert await host.recv() == frame(stream)
    return stream


def link_of(ends: Ends, role: str, environment: str = "box") -> server.Link:
    (found,) = [
        link
        for link in ends.relay._links.values()
        if link.name.startswith(f"{role}:") and f"/{environment}:" in link.name
    ]
    return found


def test_a_slow_host_holds_up_its_devices_and_no_others(tmp_path: Path) -> None:
    total = 24 * MIB // len(BLOCK)

    async def test() -> None:
        async with serving(tmp_path) as ends:
            host = await silent_host(ends)
            device = await ends.device()
            other_host, other = await ends.host("den"), await ends.device("den")
            stream, elsewhere = new_stream(), new_stream()
            sent = hashlib.sha256()
            done = asyncio.Event()

            async def flood() -> None:
                for seq in range(total):
                    message = data(stream, BLOCK[seq % 50 :], seq)
                    sent.update(message)
                    await device.send(message)
                done.set()

            async with asyncio.TaskGroup() as group:
                group.create_task(flood())
                await ends.until(lambda: link_of(ends, "device").paused)
                # Its own queue stops growing: no more than one read went over the mark.
                assert link_of(ends, "host").queued < 64 * KIB + 2 * READ_BYTES + 2 * len(BLOCK)
                for seq in range(50):
                    await other.send(data(elsewhere, BLOCK, seq))
                    assert await other_host.recv() == data(elsewhere, BLOCK, seq)
                assert not done.is_set()
                assert link_of(ends, "device").paused
                # The host comes back to life: everything arrives, in order, once.
                got = hashlib.sha256()
                for _ in range(total):
                    head = await receive_exactly(host, 4)
                    assert head[:2] == b"\x82\x7e"
                    got.update(await receive_exactly(host, int.from_bytes(head[2:], "big")))
                await done.wait()
            assert got.digest() == sent.digest()
            assert not link_of(ends, "device").paused

    run(test)


def test_many_devices_wait_for_one_host_and_lose_nothing(tmp_path: Path) -> None:
    count, each = 12, 40

    async def test() -> None:
        async with serving(tmp_path) as ends:
            host = await ends.host()
            devices = {new_stream(): await ends.device() for _ in range(count)}
            host.transport.pause_reading()

            async def flood(stream: str) -> None:
                for seq in range(each):
                    await devices[stream].send(data(stream, BLOCK, seq))

            async with asyncio.TaskGroup() as group:
                for stream in devices:
                    group.create_task(flood(stream))
                links = ends.relay._links.values()
                await ends.until(lambda: sum(link.paused for link in links) == count)
                assert ends.figure("queued_bytes") < count * (READ_BYTES + 64 * KIB)
                host.transport.resume_reading()
                got: dict[str, list[int]] = {stream: [] for stream in devices}
                for _ in range(count * each):
                    message = await host.recv()
                    assert isinstance(message, bytes)
                    received = wire.decode(message)
                    assert isinstance(received.body, wire.Data)
                    got[received.stream_id].append(received.body.seq)
            assert list(got.values()) == [list(range(each))] * count
            assert ends.figure("slow") == 0

    run(test)


def test_a_slow_device_is_cut_and_its_host_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, Limits(queue_bytes_a_link=2 * MIB)) as ends:
            host, good = await ends.host(), await ends.device()
            slow, well = await silent_device(ends, host), new_stream()
            await good.send(frame(well))
            assert await host.recv() == frame(well)
            most = seq = 0
            while ends.figure("slow") == 0:
                await host.send(data(slow, BLOCK, seq))
                await host.send(data(well, BLOCK, seq))
                assert await good.recv() == data(well, BLOCK, seq)
                most, seq = max(most, ends.figure("queued_bytes")), seq + 1
            assert await reset_of(host) == (slow, "peer-slow")
            assert MIB < most <= 2 * MIB
            assert ends.figure("queued_bytes") == 0
            await host.send(data(well, b"still here"))
            assert await good.recv() == data(well, b"still here")
            # The stream is still its device's.
            again = await ends.device()
            await again.send(frame(slow, wire.Resume(7)))
            assert await host.recv() == frame(slow, wire.Resume(7))

    run(test)


def test_an_owner_and_the_relay_have_a_bound_of_their_own(tmp_path: Path) -> None:
    limits = Limits(queue_bytes_a_link=4 * MIB, queue_bytes_an_owner=2 * MIB, queue_bytes=3 * MIB)

    async def test() -> None:
        async with serving(tmp_path, limits) as ends:

            async def fill(owner: str, enough: Callable[[], bool]) -> None:
                """A host of `owner` sends to a device that does not read."""
                token = ends.owner_token(owner)
                host = await ends.socket((await ends.register("box", token)).json["url"])
                stream = await silent_device(ends, host, "box", token)
                while not enough():
                    await host.send(data(stream, BLOCK))
                    await asyncio.sleep(0)
                    assert ends.figure("queued_bytes") <= limits.queue_bytes

            await fill("anna", lambda: ends.figure("slow") == 1)
            assert ends.figure("queued_bytes") == 0, "cut at the owner's bound, below the link's"
            await fill("bert", lambda: ends.figure("queued_bytes") > 1.7 * MIB)
            await fill("carl", lambda: ends.figure("slow") == 2)
            # The relay's bound was met; the one with most in it made room.
            assert ends.figure("queued_bytes") < 1.5 * MIB

    run(test)


def test_who_answers_no_ping_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK_S", 0.05)
    monkeypatch.setattr(server, "SWEEP_S", 0.1)

    async def test() -> None:
        async with serving(tmp_path) as ends:
            awake, device = await ends.host(), await ends.device()
            stream = new_stream()
            await device.send(frame(stream))
            await awake.recv()
            dead = await open_raw_socket(ends, (await ends.register("den")).json["url"])
            await ends.until(lambda: ends.online("den"))
            await ends.until(lambda: ends.figure("silent") == 1)
            await ends.until(lambda: not ends.online("den"))
            assert await asyncio.get_running_loop().sock_recv(dead, 2) == b"\x89\x00"
            assert ends.online("box")  # it answers pings
            await device.send(data(stream, b"x"))
            assert await awake.recv() == data(stream, b"x")

    run(test)


def test_a_device_whose_host_is_congested_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TICK_S", 0.02)
    monkeypatch.setattr(server, "SWEEP_S", 0.02)
    monkeypatch.setattr(server, "SILENT_SWEEPS", 10_000)

    async def test() -> None:
        async with serving(tmp_path) as ends:
            await silent_host(ends)
            device = await ends.device()
            stream = new_stream()
            async with asyncio.TaskGroup() as group:

                async def flood() -> None:
                    for seq in range(1000):
                        await device.send(data(stream, BLOCK, seq))

                flooding = group.create_task(flood())
                await ends.until(lambda: link_of(ends, "device").paused)
                ticks = ends.relay._ticks
                await ends.until(lambda: ends.relay._ticks > ticks + 5)
                assert link_of(ends, "device").silent == 0
                assert link_of(ends, "host").silent > 0
                flooding.cancel()
            device.transport.abort()

    run(test)


def test_cutting_the_host_lets_its_waiting_devices_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            await silent_host(ends)
            device = await ends.device()
            stream = new_stream()
            async with asyncio.TaskGroup() as group:

                async def flood() -> None:
                    for seq in range(200):
                        await device.send(data(stream, BLOCK, seq))

                group.create_task(flood())
                await ends.until(lambda: link_of(ends, "device").paused)
                new = await ends.host()  # the machine was restarted; its old socket hangs
                seq = 0
                while seq < 199:
                    received = await new.recv()
                    assert isinstance(received, bytes)
                    assert received.startswith(data(stream, BLOCK, seq + 1)[:40])
                    seq = wire.decode(received).body.seq  # type: ignore[union-attr]
            assert not link_of(ends, "device").paused

    run(test)


def test_an_official_executor_is_not_read_for_a_slow_device_until_that_is_cut(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        limits = Limits(hold_executor_s=1.0)
        async with serving(tmp_path, limits) as ends:
            key = {
                "suite": "Noise_hybridIK_X25519+MLKEM768_AESGCM_SHA256",
                "x25519_public_key": base64.b64encode(bytes(32)).decode(),
                "mlkem768_public_key": base64.b64encode(bytes(1184)).decode(),
            }
            document = {"security_profile": "noise_hybrid_ik_v1", "executor_public_key": key}
            registered = await ends.call("POST", "/cloud/environment/box/register", document)
            host = await ends.socket(registered.json["url"])
            await ends.until(lambda: ends.online())
            body = {"harness_public_key": key}
            urls = [
                (await ends.call("POST", "/cloud/environment/box/connect", body)).json["url"]
                for _ in range(2)
            ]
            slow, quick = await open_raw_socket(ends, urls[0]), await ends.socket(urls[1])
            streams = [new_stream(), new_stream()]
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(slow, client_frame(2, frame(streams[0])))
            assert await host.recv() == frame(streams[0])
            await quick.send(frame(streams[1]))
            assert await host.recv() == frame(streams[1])

            async def flood() -> None:
                for number in range(1000):
                    await host.send(data(streams[0], BLOCK, number))
                await host.send(data(streams[1], b"behind it"))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(flood())
                link = link_of(ends, "host")
                await ends.until(lambda: link.paused)
                # It waits in the executor's socket, not in the relay.
                assert ends.figure("queued_bytes") < 1000 * len(BLOCK) // 4
                assert await quick.recv() == data(streams[1], b"behind it")
            assert not link.paused
            assert ends.figure("devices") == 1

    run(test)
