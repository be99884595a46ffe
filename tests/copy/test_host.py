"""The host's handler of file channels, with its real child in the real sandbox."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from codexctl.errors import CodexctlError, Refused, UsageError
from codexctl.host.context import HostContext
from codexctl.host.files import CopyRequest, serve_file
from codexctl.session.channel import Peer
from codexctl.transfer.receiver import Receiver
from codexctl.transfer.sender import Sender
from codexctl.transfer.source import expand_sources, walk
from codexctl.transfer.target import Target
from tests.host.conftest import Bench
from tests.host.memory_channel import LAPTOP, WAIT_S, MemoryChannel

TABLET = Peer("d2", "tablet", frozenset({"view"}))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    return Bench(tmp_path)


def run(bench: Bench, scenario: Callable[[HostContext], Awaitable[None]]) -> None:
    async def main() -> None:
        context = bench.context()
        try:
            async with asyncio.timeout(WAIT_S):
                await scenario(context)
        finally:
            await context.aclose()

    asyncio.run(main())


async def serve(channel: MemoryChannel, context: HostContext) -> None:
    """As the session does: an error ends the channel with its sentence."""
    try:
        await serve_file(channel, context)
    except CodexctlError as error:
        await channel.close(error)


async def copy(
    context: HostContext, party: Sender | Receiver, peer: Peer = LAPTOP, **params: Any
) -> MemoryChannel:
    """Be the device of one copy, to its end."""
    channel = MemoryChannel("file", params, peer)
    output = channel.output[1]

    def feed() -> None:
        new = bytes(output)
        output.clear()
        try:
            party.feed(new)
        except CodexctlError as error:
            channel.error = error
            channel.hang_up()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(channel, context))
        while not channel.closed:
            data = party.produce()
            if data:
                channel.input(data)
            elif data is None:
                await channel.until(lambda: channel.closed or output)
            feed()
    feed()
    party.close()
    return channel


def upload(*paths: Path) -> Sender:
    return Sender(walk(expand_sources([str(path) for path in paths])))


def download(target: Path) -> Receiver:
    return Receiver(Target.open(f"{target}/", many=True))


def records(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(bench.home.audit_log).read_text().splitlines()]


def test_what_is_written_is_recorded(bench: Bench) -> None:
    source = bench.folder / "f"
    source.write_text("hello")

    async def scenario(context: HostContext) -> None:
        channel = await copy(context, upload(source), op="write", path="sub/", many=False)
        assert channel.error is None

    run(bench, scenario)
    assert (bench.workspace / "sub" / "f").read_text() == "hello"
    started, copied = records(bench)
    assert (started["kind"], started["who"], started["what"]) == ("copy", "laptop", ["sub/"])
    assert (copied["kind"], copied["outcome"], copied["bytes"]) == ("copied", "done", 5)


@pytest.mark.parametrize("path", ["/etc", "../outside", "~/elsewhere", "exit/x"])
def test_nothing_is_written_outside_the_workspace(bench: Bench, path: str) -> None:
    source = bench.folder / "f"
    source.write_text("x")
    (bench.workspace / "exit").symlink_to(bench.folder)

    async def scenario(context: HostContext) -> None:
        channel = await copy(context, upload(source), op="write", path=path)
        assert isinstance(channel.error, Refused)

    run(bench, scenario)
    assert [record["outcome"] for record in records(bench)] == ["denied"]


def test_credentials_cannot_be_read_and_the_rest_of_the_home_is_not_there(bench: Bench) -> None:
    (bench.person / ".ssh").mkdir()
    (bench.person / ".ssh" / "id").write_text("secret")
    (bench.person / "letter").write_text("private")
    (bench.person / ".bashrc").write_text("alias ll=ls")
    (bench.workspace / ".netrc").write_text("not the home's")
    here = bench.folder / "here"
    here.mkdir()

    async def scenario(context: HostContext) -> None:
        for path in ("~/.ssh/id", "~/.ssh", "~/letter", bench.home.identity):
            channel = await copy(context, download(here), op="read", paths=[path])
            assert channel.error is not None or os.listdir(here) == []
        channel = await copy(context, download(here), op="read", paths=["~/.bashrc", ".netrc"])
        assert channel.error is None

    run(bench, scenario)
    assert sorted(os.listdir(here)) == [".bashrc", ".netrc"]


def test_a_device_without_the_scope_is_refused(bench: Bench) -> None:
    async def scenario(context: HostContext) -> None:
        channel = await copy(context, download(bench.folder), TABLET, op="read", paths=["f"])
        assert isinstance(channel.error, Refused)
        assert "exec" in channel.error.hint

    run(bench, scenario)
    assert records(bench)[0]["outcome"] == "denied"


def test_without_the_sandbox_only_where_the_owner_allows_it(bench: Bench) -> None:
    (bench.workspace / "f").write_text("x")
    here = bench.folder / "here"
    here.mkdir()

    async def refused(context: HostContext) -> None:
        channel = await copy(context, download(here), op="read", paths=["f"], sandbox="off")
        assert isinstance(channel.error, Refused)

    async def allowed(context: HostContext) -> None:
        channel = await copy(context, download(here), op="read", paths=["f"], sandbox="off")
        assert channel.error is None

    run(bench, refused)
    bench.policy = '[sandbox]\nmode = "optional"\n'
    run(bench, allowed)
    assert (here / "f").read_text() == "x"


def test_what_fails_on_the_host_is_told_with_its_reason(bench: Bench) -> None:
    async def scenario(context: HostContext) -> None:
        channel = await copy(context, download(bench.folder), op="read", paths=["missing"])
        assert channel.error is not None
        assert "missing does not exist" in channel.error.message

    run(bench, scenario)
    assert records(bench)[-1]["outcome"] == "failed"
    assert "missing does not exist" in records(bench)[-1]["reason"]


def test_a_device_that_leaves_ends_the_child(bench: Bench) -> None:
    source = bench.folder / "big"
    source.write_bytes(os.urandom(1 << 20))

    async def scenario(context: HostContext) -> None:
        channel = MemoryChannel("file", {"op": "write", "path": ""})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(channel, context))
            sender = upload(source)
            channel.input(sender.produce() or b"")
            await channel.until(lambda: channel.output[1])
            sender.feed(bytes(channel.output[1]))
            channel.input(sender.produce() or b"")
            part = bench.workspace / "big.codexctl-part"
            while not part.exists() or not part.stat().st_size:
                await asyncio.sleep(0.01)
            channel.lose()
            sender.close()
        assert part.stat().st_size > 0
        # What had arrived is the start of the next copy.
        again = upload(source)
        await copy(context, again, op="write", path="")
        assert again.summary.resumed_bytes > 0

    run(bench, scenario)
    assert (bench.workspace / "big").read_bytes() == source.read_bytes()
    assert [record["outcome"] for record in records(bench)] == [
        "started",
        "failed",
        "started",
        "done",
    ]


def test_the_same_copy_begun_anew_ends_the_first(bench: Bench) -> None:
    source = bench.folder / "big"
    source.write_bytes(os.urandom(1 << 20))
    params: dict[str, Any] = {"op": "write", "path": "", "roots": ["big"]}

    async def scenario(context: HostContext) -> None:
        first = MemoryChannel("file", params)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(first, context))
            sender = upload(source)
            first.input(sender.produce() or b"")
            await first.until(lambda: first.output[1])
            sender.feed(bytes(first.output[1]))
            first.input(sender.produce() or b"")
            part = bench.workspace / "big.codexctl-part"
            while not part.exists() or not part.stat().st_size:
                await asyncio.sleep(0.01)
            # The first device is silent, its session is kept, its child holds the partial file.
            channel = await copy(context, upload(source), **params)
            assert channel.error is None
            await first.until(lambda: first.closed)
            sender.close()
        assert context.copies == {}

    run(bench, scenario)
    assert (bench.workspace / "big").read_bytes() == source.read_bytes()


def test_a_device_that_talks_nonsense_ends_its_copy(bench: Bench) -> None:
    async def scenario(context: HostContext) -> None:
        channel = MemoryChannel("file", {"op": "write", "path": ""})
        channel.input(b"\xff" * 100)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(channel, context))
            await channel.until(lambda: channel.closed)
        assert b"unknown type 255" in bytes(channel.output[1])

    run(bench, scenario)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"op": "delete"},
        {"op": "read"},
        {"op": "read", "paths": []},
        {"op": "read", "paths": ["x"] * 1025},
        {"op": "read", "paths": [1]},
        {"op": "read", "paths": ["a\0b"]},
        {"op": "write"},
        {"op": "write", "path": "x" * 5000},
        {"op": "write", "path": "x", "sandbox": "maybe"},
        {"op": "write", "path": "x", "roots": "y"},
    ],
)
def test_open_frames_that_make_no_sense(params: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CopyRequest.parse(params)
