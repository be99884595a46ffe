"""An attached client is held to the host's policy, whatever it asks, and its answers are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.attach.site import Site, site
from tests.attach.test_way_four import HELLO, attach, leave, tell, wait_for
from tests.support.codex import needs_codex
from tests.threads.test_notify_service import Receiver, receiving

pytestmark = needs_codex
WITHIN_S = 30.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("attached")) as made:
        # The owner's own codex has no limits; that is not for devices.
        config = made.box.machine.environment["CODEX_HOME"] + "/config.toml"
        text = Path(config).read_text()
        text = text.replace('"on-request"', '"never"').replace(
            '"workspace-write"', '"danger-full-access"'
        )
        Path(config).write_text(text)
        yield made


class Client:
    """JSON-RPC by hand, as something worse than the official terminal UI would speak it."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._next = 100
        self.ask_raw(HELLO)
        connection.send(json.dumps({"method": "initialized"}))

    def ask_raw(self, request: dict[str, Any]) -> dict[str, Any]:
        self._connection.send(json.dumps(request))
        while True:
            answer: dict[str, Any] = json.loads(self._connection.recv(WITHIN_S))
            if answer.get("id") == request["id"] and "method" not in answer:
                return answer

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._next += 1
        return self.ask_raw({"id": self._next, "method": method, "params": params})

    def drain(self) -> None:
        """Take what comes until it ends."""
        while True:
            self._connection.recv(WITHIN_S)

    def refused(self, method: str, **params: Any) -> str:
        return str(self.ask(method, **params)["error"]["message"])


@contextmanager
def client(place: Site) -> Iterator[Client]:
    with place.laptop.start("attach", "box", "--print", "--json") as door:
        ready = door.event("ready")
        (token,) = ready["env"].values()
        headers = {"Authorization": f"Bearer {token}"}
        with connect(ready["remote"], additional_headers=headers, compression=None,
                     proxy=None) as connection:  # fmt: skip
            yield Client(connection)


def turns_of(ui: Client, thread: str) -> object:
    return ui.ask("thread/read", threadId=thread)["result"]["thread"]["status"]["type"]


def audited(place: Site, kind: str) -> list[dict[str, Any]]:
    return [r for r in place.box.machine.json("audit", "list") if r["kind"] == kind]


def test_what_is_not_for_devices_is_refused_and_recorded(place: Site) -> None:
    secret = place.box.machine.environment["CODEX_HOME"] + "/config.toml"
    with client(place) as ui:
        for method, params in (
            ("command/exec", {"command": ["touch", "/tmp/never"]}),
            ("fs/readFile", {"path": secret}),
            ("config/value/write", {"keyPath": "sandbox_mode", "value": "danger-full-access"}),
            ("thread/start", {"cwd": "/etc"}),
        ):  # fmt: skip
            words = ui.refused(method, **params)
            assert words.startswith("codexctl: ")
            assert audited(place, "attach-agent")[-1]["outcome"] == "denied"
        # What it leaves open is not the owner's own setting, and too much is lowered.
        for asked in ({}, {"sandbox": "danger-full-access", "approvalPolicy": "never"}):
            started = ui.ask("thread/start", cwd=str(place.box.work), **asked)["result"]
            assert started["sandbox"]["type"] == "workspaceWrite"
            assert started["approvalPolicy"] == "on-request"
        thread = started["thread"]["id"]
        most = {"sandbox": "danger-full-access", "approvalPolicy": "never"}
        for method in ("thread/resume", "thread/fork"):
            begun = ui.ask("turn/start", threadId=thread, input=[{"type": "text", "text": "say x"}])
            assert "result" in begun
            wait_for(lambda: turns_of(ui, thread) == "idle")
            again = ui.ask(method, threadId=thread, **most)["result"]
            assert again["sandbox"]["type"] == "workspaceWrite"
            assert again["approvalPolicy"] == "on-request"
        full = {"type": "dangerFullAccess"}
        assert "dangerFullAccess" in ui.refused("turn/start", threadId=thread, input=[],
                                                sandboxPolicy=full)  # fmt: skip
        assert "shellCommand" in ui.refused("thread/shellCommand", threadId=thread, command="id")


def test_what_is_no_message_ends_it(place: Site) -> None:
    with client(place) as ui:
        ui._connection.send("[]")
        with pytest.raises(ConnectionClosed) as closed:
            ui.drain()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007


def test_who_has_answered_in_the_terminal_is_known(place: Site) -> None:
    target = place.box.work.parent / "made-outside"
    before = len(audited(place, "attach-agent"))
    with attach(place, "box") as ui:
        ui.until("Ask Codex to do anything")
        tell(ui, f"ask touch {target}", "Would you like to run the following command")
        (asked,) = wait_for(lambda: place.world.phone.json("inbox"))
        ui.until("• done", typing="y")
        late = place.world.phone.run("thread", "approve", asked["id"], "--yes", check=126)
        leave(ui)
    assert b"has decided accept" in late.stderr
    (record,) = [r for r in audited(place, "approval") if r.get("approval") == asked["id"]]
    assert (record["outcome"], record["shown"]) == ("accept", asked["hash"])
    assert str(target) in record["what"]
    # The official terminal UI asks for nothing that is held back; it may ask to trust the folder.
    outcomes = {r["outcome"] for r in audited(place, "attach-agent")[before:]}
    assert outcomes <= {"connected", "answered"}


def test_who_drives_a_thread_watches_it_and_is_not_told(place: Site) -> None:
    owner, world = place.box.machine, place.world

    def next_about(receiver: Receiver, *threads: str) -> tuple[str, str]:
        while True:
            notice = json.loads(receiver.next()[2])
            if notice["thread"] in threads:
                return notice["thread"], notice["kind"]

    with receiving() as always, receiving() as unless:
        owner.run("notify", "add", "webhook", always.url, "--name", "always", "--always")
        owner.run("notify", "add", "webhook", unless.url, "--name", "unless")
        with client(place) as ui:
            started = ui.ask("thread/start", cwd=str(place.box.work))["result"]
            thread = started["thread"]["id"]
            asked = [{"type": "text", "text": "ask echo please"}]
            ui.ask("turn/start", threadId=thread, input=asked)
            assert next_about(always, thread) == (thread, "waiting")
            world.phone.run("thread", "deny", thread)
            assert next_about(always, thread) == (thread, "finished")
        # Had the other target been told of any of it, that would come first.
        other = world.start("say something else")
        assert next_about(unless, thread, other) == (other, "finished")
        for name in ("always", "unless"):
            owner.run("notify", "remove", name)
