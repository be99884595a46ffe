"""The official executor and agent, unmodified, on this relay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from tests.relay.ends import Ends, run, serving
from tests.support.codex import (
    CODEX,
    codex_environment,
    make_codex_home,
    needs_codex,
    outputs,
    run_command,
    say,
    serving_model,
)

pytestmark = needs_codex


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
        env=codex_environment(home, CODEX_API_KEY=ends.token),
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
        work = tmp_path / "work"
        work.mkdir()
        script = [[run_command("echo through the relay | tee proof")], [say("finished")]]
        with serving_model(script) as model:
            home = make_codex_home(tmp_path / "codex", model)
            async with serving(tmp_path) as ends, executor(ends, home):
                assert CODEX is not None
                agent = await asyncio.create_subprocess_exec(
                    CODEX,
                    "exec",
                    "--skip-git-repo-check",
                    "-C",
                    str(work),
                    "do it",
                    env=codex_environment(
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
                assert "through the relay" in outputs(model.requests[1])[0]
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
