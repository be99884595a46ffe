"""The official executor and agent, unmodified, on this relay.

Needs the `codex` command (npm package @openai/codex): on PATH, or named by CODEXCTL_TEST_CODEX. A
scripted model on loopback stands in for the network, so that no account is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.relay.ends import Ends, run, serving

CODEX = os.environ.get("CODEXCTL_TEST_CODEX") or shutil.which("codex")
pytestmark = pytest.mark.skipif(
    CODEX is None, reason="the official codex is not installed (npm package @openai/codex)"
)
CONFIG = """\
model = "mock-model"
model_provider = "mock"
approval_policy = "never"
sandbox_mode = "danger-full-access"
[model_providers.mock]
name = "Mock"
base_url = "http://127.0.0.1:{port}/v1"
wire_api = "responses"
requires_openai_auth = false
request_max_retries = 0
stream_max_retries = 0
"""


class Model:
    """Answers the first call with a command to run, the next one with a closing message."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.outputs: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = int(head.partition("content-length:")[2].split()[0] or 0)
                body = await reader.readexactly(size)
                writer.write(self.answer(json.loads(body)) if "/responses" in head else NOTHING)
        writer.close()

    def answer(self, request: dict[str, object]) -> bytes:
        items = request["input"]
        assert isinstance(items, list)
        done = [item for item in items if item.get("type") == "function_call_output"]
        if done:
            self.outputs.append(str(done[-1]["output"]))
            content = [{"type": "output_text", "text": "finished"}]
            item = {"type": "message", "role": "assistant", "id": "m", "content": content}
        else:
            arguments = json.dumps({"cmd": self.command})
            item = {"type": "function_call", "id": "f", "call_id": "c", "name": "exec_command"}
            item["arguments"] = arguments
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        events = [
            {"type": "response.created", "response": {"id": "r"}},
            {"type": "response.output_item.done", "item": item},
            {"type": "response.completed", "response": {"id": "r", "usage": usage}},
        ]
        stream = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(stream), stream)
        )


NOTHING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "CODEX_HOME": str(home), "RUST_LOG": "off", **more}


@contextlib.asynccontextmanager
async def executor(ends: Ends, home: Path) -> AsyncIterator[None]:
    """The official executor, registered as `box`."""
    assert CODEX is not None
    process = await asyncio.create_subprocess_exec(
        CODEX,
        "exec-server",
        "--remote",
        ends.relay.local_url,
        "--environment-id",
        "box",
        env=environment(home, CODEX_API_KEY=ends.token),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await ends.until(lambda: ends.online())
        yield
    finally:
        # The command is a wrapper; the executor itself is its child.
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def test_an_official_agent_works_on_an_official_executor(tmp_path: Path) -> None:
    async def test() -> None:
        home, work = tmp_path / "codex", tmp_path / "work"
        home.mkdir()
        work.mkdir()
        model = Model("echo through the relay | tee proof")
        server = await asyncio.start_server(model.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        (home / "config.toml").write_text(CONFIG.format(port=port))
        async with server, serving(tmp_path) as ends, executor(ends, home):
            assert CODEX is not None
            agent = await asyncio.create_subprocess_exec(
                CODEX,
                "exec",
                "--skip-git-repo-check",
                "-C",
                str(work),
                "do it",
                env=environment(
                    home,
                    CODEX_EXEC_SERVER_NOISE_REGISTRY_URL=ends.relay.local_url,
                    CODEX_EXEC_SERVER_NOISE_ENVIRONMENT_ID="box",
                    CODEX_EXEC_SERVER_NOISE_AUTH_TOKEN=ends.token,
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            assert await agent.wait() == 0
            assert (work / "proof").read_text() == "through the relay\n"
            assert "through the relay" in model.outputs[0]
            # Register, connect and validate were called; the turn itself went as frames.
            assert ends.figure("requests") == 3
            assert ends.figure("frames") > 10

    run(test)


def test_an_official_executor_comes_again_after_the_relay_was_restarted(tmp_path: Path) -> None:
    async def test() -> None:
        home = tmp_path / "codex"
        home.mkdir()
        async with contextlib.AsyncExitStack() as stack:
            async with serving(tmp_path) as ends:
                port, token = ends.port, ends.token
                await stack.enter_async_context(executor(ends, home))
            async with serving(tmp_path, listen=f"127.0.0.1:{port}") as ends:
                ends.token = token
                await ends.until(lambda: ends.online())
                connected = await ends.call("GET", "/v1/environments/box")
                assert connected.json["online"] is True

    run(test)
