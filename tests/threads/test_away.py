"""Hosts that go away and come back: the outbox, watching on, inboxes of several hosts, notices."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.codex import needs_codex
from tests.threads.terminal import Terminal
from tests.threads.test_notify_service import Receiver, receiving
from tests.threads.world import Host, World

pytestmark = needs_codex
DEADLINE_S = 60.0


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, "it does not become so"
        time.sleep(0.05)


def said(world: World, thread: str) -> list[str]:
    """What the person said in the thread, as the host has it."""
    lines = world.laptop.run("thread", "export", thread, "--format", "jsonl").stdout.splitlines()
    return [
        item["content"][0]["text"]
        for line in lines[1:]
        for item in json.loads(line)["turn"]["items"]
        if item["type"] == "userMessage"
    ]


def test_a_message_to_a_host_that_is_away_is_delivered_once(world: World) -> None:
    thread = world.start("say first", "--name", "while away")
    world.box.stop()
    kept = world.laptop.run("thread", "send", "while away", "say second")
    assert b"box is not reached" in kept.stderr
    assert kept.stdout == b"message 1 waits for box; see: codexctl thread outbox\n"
    again = world.laptop.json("thread", "send", thread, "say third")
    assert again["state"] == "waiting"
    waiting = world.laptop.json("thread", "outbox")
    assert [(m["text"], m["state"], m["thread"]) for m in waiting] == [
        ("say second", "waiting", thread),
        ("say third", "waiting", thread),
    ]
    listed = {t["id"]: t for t in world.laptop.json("thread", "list")}
    assert (listed[thread]["status"], listed[thread]["waiting_messages"]) == ("away", 2)
    inbox = world.laptop.run("inbox", check=255)
    assert b"2 messages wait for their host" in inbox.stderr
    with world.laptop.start("thread", "send", thread, "say fourth", "--wait", "--json") as last:
        until(lambda: len(world.laptop.json("thread", "outbox")) == 3)
        world.box.start()
        deliver_by_several(world, thread)
        assert last.process.wait(DEADLINE_S) == 0, last.errors
    everything = ["say first", "say second", "say third", "say fourth"]
    world.laptop.run("thread", "watch", thread, "--wait")
    assert said(world, thread) == everything
    assert world.laptop.json("thread", "outbox") == []
    # The same key again, as after a lost answer, does nothing.
    key = {m["text"]: m["key"] for m in world.laptop.json("thread", "outbox", "--all")}
    send_again(world, thread, "say third", key["say third"])
    assert said(world, thread) == everything


def deliver_by_several(world: World, thread: str) -> None:
    """Commands that reach the host at once: nothing may go twice, nor in another order."""
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "codexctl", *words],
            env=world.laptop.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for words in (("thread", "show", thread), ("thread", "outbox", "--deliver"))
    ]  # fmt: skip
    for command in commands:
        command.communicate(timeout=DEADLINE_S)
        assert command.returncode == 0


def send_again(world: World, thread: str, text: str, key: str) -> None:
    code = (
        "import sys; from codexctl.client.agent import call; from codexctl.paths import Home\n"
        "from codexctl.cli.target import need_host, open_connection\n"
        "home = Home.from_env()\n"
        "with open_connection(home, need_host(home, 'box')) as c:\n"
        "    t, text, key = sys.argv[1:]\n"
        "    answer = call(c, 'thread.send', {'thread': t, 'key': key}, input=text.encode())\n"
        "    assert answer[0]['repeated'], answer\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, thread, text, key], env=world.laptop.environment, check=True
    )


def test_what_the_host_refuses_later_is_kept_with_the_reason(world: World) -> None:
    thread = world.start("say first")
    world.box.stop()
    world.laptop.run("thread", "send", thread, "say late")
    world.box.start()
    world.phone.run("thread", "archive", thread)
    shown = world.laptop.run("inbox")
    assert (
        b"was refused: " in world.laptop.run("thread", "outbox", "--deliver").stderr + shown.stderr
    )
    (message,) = world.laptop.json("thread", "outbox")
    assert (message["state"], "archived" in message["error"]) == ("refused", True)
    world.phone.run("thread", "archive", "--undo", thread)
    world.laptop.run("thread", "outbox", "--retry", str(message["number"]), "--json")
    world.laptop.run("thread", "outbox", "--deliver")
    world.laptop.run("thread", "watch", thread, "--wait")
    assert said(world, thread) == ["say first", "say late"]


def test_watching_goes_on_over_a_restart_of_the_host(world: World) -> None:
    thread = world.start("say first")
    with world.laptop.start("thread", "watch", thread, "--json") as watch:

        def seen() -> list[dict[str, Any]]:
            return [json.loads(line) for line in watch.printed()]

        until(lambda: any(e["method"] == "codexctl/events/replayed" for e in seen()))
        world.box.stop()
        world.box.start()
        world.phone.run("thread", "send", thread, "say after it", "--wait")
        until(lambda: sum(e["method"] == "turn/completed" for e in seen()) == 2)
        cursors = [e["cursor"] for e in seen() if e["method"] != "codexctl/events/replayed"]
        assert cursors == sorted(set(cursors))


def test_watch_on_a_terminal(world: World) -> None:
    thread = world.start("say first", "--name", "on screen")
    sign = world.box.work / "go"
    sign.unlink(missing_ok=True)
    with Terminal(world.laptop, "thread", "watch", thread, columns=60) as terminal:
        terminal.until("● box:on screen  idle")
        world.phone.run(
            "thread", "send", thread, f"run echo begun; while [ ! -e {sign} ]; do sleep 0.1; done"
        )
        terminal.until("running for ")
        terminal.until("active")
        terminal.resize(40, 12)
        shown = terminal.output.count("running for ")
        terminal.until(lambda output: output.count("running for ") > shown + 1)
        sign.touch()
        terminal.until("turn done")
        terminal.type("\x03")
        assert terminal.wait() == 130
        output = terminal.output
    assert "the thread goes on" in output
    # Each update is one picture.
    assert output.count("\x1b[?2026h") == output.count("\x1b[?2026l")


@pytest.fixture
def second(world: World) -> Iterator[Host]:
    """Another host, paired with the laptop."""
    folder = world.folder / "second"
    folder.mkdir()
    host = Host(folder, world.outside / "second", world.model, "attic")
    host.machine.home.mkdir()
    policy = '[threads]\nsandbox = "danger-full-access"\n'
    (host.machine.home / "policy.toml").write_text(policy)
    host.start()
    try:
        host.pair(world.laptop)
        yield host
    finally:
        host.end()


def test_several_hosts_are_one_inbox_and_one_list(world: World, second: Host) -> None:
    here = world.start("ask echo here", "--name", "same name", check=10)
    done = world.laptop.run(
        "thread", "start", "attic", "question there", "--name", "same name", "--wait", "--json",
        "--sandbox", "danger-full-access", check=10,
    )  # fmt: skip
    there = json.loads(done.stdout.splitlines()[0])["id"]
    found = {a["thread"]: a["host"] for a in world.laptop.json("inbox")}
    assert found == {here: "box", there: "attic"}
    ambiguous = world.laptop.run("thread", "show", "same name", check=2)
    assert f"attic:{there}".encode() in ambiguous.stderr
    assert world.laptop.run("thread", "show", "attic:same name", "--json").returncode == 0
    # What asks nobody is marked wherever it is shown.
    for words in (("thread", "list", "attic"), ("inbox", "attic")):
        assert b"[asks nobody]" in world.laptop.run(*words).stdout
        assert b"[asks nobody]" not in world.laptop.run(*words[:-1], "box").stdout
    for words in (("thread", "show", there), ("thread", "watch", there, "--no-follow")):
        assert b"asks nobody" in world.laptop.run(*words).stderr
    world.laptop.run("thread", "answer", there, "red")
    second.stop()
    # A host that is away is told of, and the others are shown.
    partly = world.laptop.run("inbox")
    assert b"attic was left out" in partly.stderr
    assert b"echo here" in partly.stdout
    world.laptop.run("thread", "deny", here)


class Hook:
    """A webhook target of the host, for the notices of one thread at a time."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._seen: list[dict[str, Any]] = []

    def next(self, thread: str) -> dict[str, Any]:
        while True:
            notice: dict[str, Any] = json.loads(self._receiver.next()[2])
            if notice["thread"] == thread:
                return notice

    def none(self, thread: str) -> bool:
        """Whether nothing about the thread has come since the last `next`."""
        return not any(thread.encode() in body for _, _, body in list(self._receiver.got.queue))


@pytest.fixture
def hook(world: World) -> Iterator[Hook]:
    owner = world.box.machine
    with receiving() as receiver:
        owner.run("notify", "add", "webhook", receiver.url, "--name", "hook")
        owner.run("notify", "test", "hook")
        assert json.loads(receiver.next()[2])["id"] == "test"
        yield Hook(receiver)
        owner.run("notify", "remove", "hook")
        assert owner.json("notify", "list") == []


def test_who_needs_to_know_is_told_once_with_a_link_that_works(world: World, hook: Hook) -> None:
    thread = world.start("ask echo please", "--name", "tell me", check=10)
    asked = hook.next(thread)
    assert asked["title"] == "box: tell me asks to run a command"
    assert "echo please" in asked["body"]
    shown = world.laptop.run("thread", "show", asked["link"], "--json").stdout
    assert json.loads(shown.splitlines()[0])["id"] == thread
    world.laptop.run("thread", "approve", thread, "--yes")
    assert hook.next(thread)["title"] == "box: tell me has finished"
    (target,) = world.box.machine.json("notify", "list")
    assert (target["name"], target["error"]) == ("hook", None)
    assert hook.none(thread)


def test_a_device_that_watches_is_told_only_when_it_has_left(world: World, hook: Hook) -> None:
    thread = world.start("say first")
    assert hook.next(thread)["kind"] == "finished"
    with world.laptop.start("thread", "watch", thread, "--json") as watch:
        until(lambda: any(b"events/replayed" in line for line in watch.printed()))
        world.phone.run("thread", "send", thread, "ask echo quietly")
        until(lambda: any(b"approval/requested" in line for line in watch.printed()))
        assert hook.none(thread)
    assert hook.next(thread)["kind"] == "waiting"
    world.phone.run("thread", "deny", thread)


def test_an_app_server_that_dies_in_a_turn_is_a_failed_thread(world: World, hook: Hook) -> None:
    thread = world.start("say first")
    assert hook.next(thread)["kind"] == "finished"
    world.laptop.run("thread", "send", thread, "run sleep 100")
    # One that waits for a status is nobody who watches.
    with world.laptop.start("thread", "watch", thread, "--json", "--wait") as watch:
        until(lambda: any(b'"commandExecution"' in line for line in watch.printed()))
    world.box.kill_app_server()
    told = hook.next(thread)
    assert (told["kind"], "the app-server ended" in told["body"]) == ("failed", True)
    failed = world.laptop.run("thread", "watch", thread, "--wait", check=20)
    assert b"the app-server ended" in failed.stdout
    world.laptop.run("thread", "send", thread, "say it goes on", "--wait")
