"""Way 2: the official agent here, an official executor there. And: our responder for that agent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codexctl.client.http import request
from codexctl.client.websocket import WebSocket
from codexctl.noise.handshake import prologue
from codexctl.noise.hybrid import HybridKey, HybridResponder
from codexctl.noise.keys import hybrid_document, parse_hybrid_document
from codexctl.noise.transport import Transport
from codexctl.secret import Secret
from codexctl.wire import relay as frames
from tests.official.site import WITHIN_S, Site
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
from tests.support.programs import COMMAND_TIMEOUT_S

pytestmark = needs_codex


def variables(site: Site, name: str) -> dict[str, str]:
    """What a shell has after `eval "$(codexctl env NAME)"`."""
    printed = site.laptop.run("env", name, "--shell", "sh").stdout.decode()
    shown = subprocess.run(
        ["sh", "-c", f"{printed}\nenv -0"], env={"PATH": "/usr/bin:/bin"}, capture_output=True,
        check=True,
    ).stdout.decode()  # fmt: skip
    pairs = (pair.partition("=") for pair in shown.split("\0") if pair.startswith("CODEX_"))
    return {key: value for key, _, value in pairs}


@contextmanager
def agent(site: Site, home: Path, name: str, task: str) -> Iterator[subprocess.Popen[bytes]]:
    """`codex exec` with the variables of `codexctl env`, in the executor's own folder."""
    assert CODEX is not None
    process = subprocess.Popen(
        [CODEX, "exec", "--skip-git-repo-check", "-C", str(site.executor.workspace), task],
        env=codex_environment(home, **variables(site, name)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # The npm package's `codex` is a script that starts the binary: the whole session of it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(COMMAND_TIMEOUT_S)


def test_the_agent_works_on_the_executor(site: Site, tmp_path: Path) -> None:
    script = [[run_command("pwd; echo through codexctl env | tee proof")], [say("finished")]]
    with serving_model(script) as model:
        home = make_codex_home(tmp_path / "codex", model)
        with agent(site, home, "box", "do it") as process:
            assert process.wait(COMMAND_TIMEOUT_S) == 0
        assert (site.executor.workspace / "proof").read_text() == "through codexctl env\n"
        assert "through codexctl env" in outputs(model.requests[1])[0]


def test_fish_and_json_have_the_same_variables(site: Site) -> None:
    found = variables(site, "box")
    assert found["CODEX_EXEC_SERVER_NOISE_ENVIRONMENT_ID"] == "box"
    assert found == site.laptop.json("env", "box")
    fish = site.laptop.run("env", "box", "--shell", "fish").stdout.decode()
    assert fish.count("set -gx CODEX_EXEC_SERVER_NOISE_") == 3


def test_our_responder_understands_the_official_agent(site: Site, tmp_path: Path) -> None:
    """The other role of the hybrid suite: the real harness begins, this process answers."""
    key = HybridKey.generate()
    answer = request(
        "POST",
        f"{site.url}/cloud/environment/ours/register",
        token=Secret(site.token),
        body={
            "security_profile": "noise_hybrid_ik_v1",
            "executor_public_key": hybrid_document(key.public),
        },
    )
    websocket = WebSocket(answer.value["url"], None)
    registration = answer.value["executor_registration_id"]
    site.add(site.laptop, "ours")
    try:
        with serving_model([[say("finished")]]) as model:
            home = make_codex_home(tmp_path / "codex", model)
            with agent(site, home, "ours", "do nothing"):
                asked = _first_request(site, websocket, key, registration)
    finally:
        websocket.close()
    assert asked["method"] == "initialize"
    assert asked["params"]["clientName"]


def _first_request(
    site: Site, websocket: WebSocket, key: HybridKey, registration: str
) -> dict[str, dict[str, str]]:
    """Answer the harness's handshake and read what it then asks first."""
    transport: Transport | None = None
    buffer = b""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        websocket.write()
        select.select([websocket.fileno()], [], [], 0.1)
        assert websocket.read()
        for message in websocket.messages():
            frame = frames.decode(message)
            if isinstance(frame.body, frames.Handshake):
                label = "codex-exec-server-relay-noise/v1"
                bound = prologue(label, "ours", registration, frame.stream_id)
                responder = HybridResponder(key, bound)
                first = responder.read_first(frame.body.payload)
                # It is who the registry has let in, and once only.
                for expected in (True, False):
                    body = {
                        "executor_registration_id": registration,
                        "harness_public_key": hybrid_document(first.remote),
                        "harness_key_authorization": first.payload.decode(),
                    }
                    assert parse_hybrid_document(body["harness_public_key"]) == first.remote
                    found = request(
                        "POST",
                        f"{site.url}/cloud/environment/ours/validate",
                        token=Secret(site.token),
                        body=body,
                    )
                    assert found.value == {"valid": expected}
                second, transport = responder.write_second()
                reply = frames.Frame(frame.stream_id, frames.Handshake(second))
                websocket.send(frames.encode(reply))
            elif isinstance(frame.body, frames.Data):
                assert transport is not None
                buffer += transport.decrypt(frame.body.payload)
        if len(buffer) >= 4 and len(buffer) >= 4 + struct.unpack(">I", buffer[:4])[0]:
            request_: dict[str, dict[str, str]] = json.loads(buffer[4:])
            return request_
    raise AssertionError("the agent asked nothing")
