"""What survives: the daemon and the app-server are killed while the agent works or waits."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import unix_connect

from codexctl.errors import CodexctlError
from tests.agent.model import script
from tests.support.codex import Model, needs_codex, serving_model
from tests.support.threads import ThreadDevice, ThreadHost

pytestmark = needs_codex
REQUESTED, ENDED, DONE = "codexctl/approval/requested", "codexctl/approval/ended", "turn/completed"
POLICY = '[threads]\nsandbox = "danger-full-access"\napproval = "never"\n'


class World:
    def __init__(self, folder: Path, model: Model) -> None:
        self.model = model
        self.host = ThreadHost(folder, model, policy=POLICY)
        self.laptop: ThreadDevice = self.host.device("laptop")

    def kill_app_server(self) -> None:
        record = json.loads((self.host.machine.home / "app-server.json").read_text())
        restarts = self.laptop.one("agent.status")["restarts"]
        os.killpg(record["pid"], signal.SIGKILL)
        end = time.monotonic() + 30
        while not self._restarted(restarts):
            assert time.monotonic() < end
            time.sleep(0.05)

    def _restarted(self, restarts: int) -> bool:
        status = self.laptop.one("agent.status")
        return bool(status["restarts"] > restarts and status["running"])


class OtherClient:
    """A client of its own at the app-server's socket, as the official terminal UI is one."""

    def __init__(self, path: str) -> None:
        self._opening = unix_connect(path, "ws://localhost/", compression=None)
        self._requests: list[dict[str, Any]] = []
        self._calls = 0

    def __enter__(self) -> OtherClient:
        self._socket = self._opening.__enter__()
        self.call("initialize", clientInfo={"name": "other", "version": "1"})
        self.send({"method": "initialized"})
        return self

    def __exit__(self, *_: object) -> None:
        self._opening.__exit__(None, None, None)

    def send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        self.send({"id": f"c{self._calls}", "method": method, "params": params})
        while (message := self._next()).get("id") != f"c{self._calls}":
            if "id" in message and "method" in message:
                self._requests.append(message)
        result: dict[str, Any] = message["result"]
        return result

    def request(self) -> dict[str, Any]:
        """The next request of the server's."""
        while not self._requests:
            message = self._next()
            if "id" in message and "method" in message:
                self._requests.append(message)
        return self._requests.pop(0)

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=30))
        return message


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_model(script) as model:
        made = World(tmp_path_factory.mktemp("restart"), model)
        try:
            yield made
        finally:
            made.host.close()


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
def test_an_approval_survives_the_daemon(world: World, kill: bool) -> None:
    file = world.host.machine.cwd / f"survived-{kill}"
    thread = world.laptop.one("thread.start", prompt=f"ask touch {file.name}")["id"]
    asked = world.laptop.events(REQUESTED, thread=thread)[-1]
    before = asked["params"]["approval"]
    world.host.restart(kill=kill)
    (after,) = world.laptop.call("approval.list")
    assert {k: v for k, v in after.items() if k != "expires_in_s"} == {
        k: v for k, v in before.items() if k != "expires_in_s"
    }
    world.laptop.one("approval.answer", id=after["id"], hash=before["hash"], decision="accept")
    events = world.laptop.events(DONE, thread=thread, cursor=asked["cursor"])
    # It was asked once, though the app-server asked each daemon.
    assert REQUESTED not in [event["method"] for event in events]
    assert file.exists()


def test_a_turn_that_ends_without_a_daemon_is_told(world: World) -> None:
    world.model.go.clear()
    world.model.asked.clear()
    thread = world.laptop.one("thread.start", prompt="hello")["id"]
    assert world.model.asked.wait(30)
    world.host.up.kill()
    world.model.go.set()
    world.host.restart()
    events = world.laptop.events(DONE, thread=thread)
    assert events[-1]["params"]["turn"]["status"] == "completed"
    assert world.laptop.one("thread.show", thread=thread, limit=0)["status"] == "idle"


def test_an_app_server_that_dies_in_a_turn_is_told_and_replaced(world: World) -> None:
    thread = world.laptop.one("thread.start", prompt="ask touch lost")["id"]
    approval = world.laptop.events(REQUESTED, thread=thread)[-1]["params"]["approval"]
    world.kill_app_server()
    events = world.laptop.events("codexctl/agent/ended", thread=thread)
    (ended,) = [e["params"]["approval"] for e in events if e["method"] == ENDED]
    assert ended["state"] == "withdrawn"
    assert "the app-server ended" in ended["withdrawn_because"]
    with pytest.raises(CodexctlError, match="is withdrawn since"):
        world.laptop.one(
            "approval.answer", id=approval["id"], hash=approval["hash"], decision="accept"
        )
    cursor = events[-1]["cursor"]
    world.laptop.one("thread.send", thread=thread, text="go on")
    world.laptop.events(DONE, thread=thread, cursor=cursor)
    conversation = json.dumps(world.model.requests[-1]["input"])
    assert "ask touch lost" in conversation
    assert "go on" in conversation
    status = world.laptop.one("agent.status")
    assert status["restarts"] >= 1
    assert status["last_end"]


def test_threads_of_other_clients_are_followed_and_asked_for(world: World) -> None:
    record = json.loads((world.host.machine.home / "app-server.json").read_text())
    client = OtherClient(f"{record['folder']}/app-server.sock")
    with client:
        thread = client.call("thread/start", cwd=str(world.host.machine.cwd))["thread"]["id"]
        text = [{"type": "text", "text": "ask touch from-elsewhere"}]
        client.call("turn/start", threadId=thread, input=text)
        asked = world.laptop.events(REQUESTED, thread=thread)[-1]["params"]["approval"]
        client.send({"id": client.request()["id"], "result": {"decision": "accept"}})
        events = world.laptop.events(DONE, thread=thread)
    ended = [e["params"]["approval"] for e in events if e["method"] == ENDED]
    assert [(a["id"], a["state"]) for a in ended] == [(asked["id"], "withdrawn")]
    assert "another client" in ended[0]["withdrawn_because"]
    assert (world.host.machine.cwd / "from-elsewhere").exists()


def test_no_resume_inherits_a_bypass(world: World) -> None:
    bypass: dict[str, Any] = {"sandbox": "danger-full-access", "approval": "never"}
    started = world.laptop.one("thread.start", prompt="hello", **bypass)
    thread = started["id"]
    assert started["bypass"]
    world.laptop.events(DONE, thread=thread)
    assert [t["bypass"] for t in world.laptop.call("thread.list") if t["id"] == thread] == [True]
    world.kill_app_server()
    resumed = world.laptop.one("thread.resume", thread=thread)
    assert not resumed["bypass"]
    assert (resumed["sandbox"], resumed["approval"]) == ("workspace-write", "on-request")
    fork = world.laptop.one("thread.fork", thread=thread)
    assert not fork["bypass"]
    # Asked for again, in words, it holds from the next turn on.
    world.laptop.one("thread.resume", thread=thread, text="more", **bypass)
    shown = world.laptop.events("thread/settings/updated", thread=thread)[-1]["params"]
    assert shown["threadSettings"]["approvalPolicy"] == "never"
    assert world.laptop.one("thread.show", thread=thread, limit=0)["bypass"]
