"""Threads move between real hosts: conversation, tree, and back; whatever dies on the way."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codexctl.errors import CodexctlError
from tests.handoff.trees import git, state, write
from tests.handoff.world import World, until
from tests.support.codex import Request, needs_codex, run_command, say, serving_model
from tests.support.memory import peak_kib

pytestmark = [
    needs_codex,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc"),
]


def said(request: Request) -> list[Any]:
    """Each answer differs; one who is asked to escalate asks for an approval first."""
    last = request["input"][-1]
    if last.get("role") == "user" and "escalate" in json.dumps(last):
        asking = {"sandbox_permissions": "require_escalated", "justification": "it must be"}
        return [run_command("echo done", **asking)]
    return [say(f"answer {len(request['input'])}")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_model(said) as model:
        made = World(tmp_path_factory.mktemp("handoff"), model)
        try:
            yield made
        finally:
            made.close()


def conversation(world: World) -> str:
    """Everything that the model was told last."""
    return json.dumps(world.model.requests[-1]["input"])


def turn(world: World, host: str, thread: str, text: str) -> None:
    before = len(world.model.requests)
    world.ask(host, "thread.send", thread=thread, text=text, key=secrets.token_hex(8))
    until(lambda: len(world.model.requests) > before, "the model to be asked")
    until(
        lambda: world.ask(host, "thread.show", thread=thread, limit=0)[0]["status"] == "idle",
        "the turn to end",
    )


def owners(world: World, thread: str) -> list[str]:
    """The hosts on which a turn of the thread can be begun."""
    found = []
    for name in world.hosts:
        listed = {t["id"]: t for t in world.ask(name, "thread.list")}
        rows = world.rows(name, thread)
        if thread in listed and not any(not row["over"] for row in rows):
            found.append(name)
    return found


def test_there_and_back_with_everything(world: World) -> None:
    thread = world.thread("one", "app", "the first message")
    world.ask("one", "thread.goal", thread=thread, objective="a green suite", state="paused")
    tree = world.hosts["one"].workspace / "app"
    git(tree, "stash", "push", "--quiet", "-m", "kept")
    write(tree, "b.txt", "staged\n")
    git(tree, "add", "b.txt")
    write(tree, "b.txt", "staged and changed\n")
    before = state(tree)
    plan = world.device.json("thread", "handoff", thread, "--to", "two", "--dry-run")
    assert plan["obstacles"] == []
    assert plan["tree"]["changed"] == 1
    assert world.rows("one", thread) == []

    done = world.device.json("thread", "handoff", thread, "--to", "two")
    there = world.hosts["two"].workspace / "app"
    assert (done["moved"], done["host"], done["folder"]) == (True, "two", str(there))
    assert state(there) == before
    assert state(tree) == before
    assert owners(world, thread) == ["two"]
    (shown,) = world.ask("one", "thread.show", thread=thread, limit=0)
    assert (shown["status"], shown["moved_to"]) == ("archived", "two")
    with pytest.raises(CodexctlError, match="two"):
        world.ask("one", "thread.send", thread=thread, text="x", key="k")

    # It has taken no turn there yet: where it works now is known all the same.
    world.kill("codex two")
    turn(world, "two", thread, "the second message")
    assert "the first message" in conversation(world)
    assert "answer" in conversation(world)
    assert str(there) in conversation(world)
    (shown,) = world.ask("two", "thread.show", thread=thread, limit=0)
    assert shown["name"] == "app"
    assert (shown["sandbox"], shown["approval"]) == ("workspace-write", "on-request")
    assert "a green suite" in json.dumps(world.ask("two", "thread.goal", thread=thread))

    write(there, "more.txt", "from two\n")
    plan = world.device.json("thread", "handoff", thread, "--to", "one", "--dry-run")
    assert plan["clone"] is not None
    assert plan["send"]["bundle"] < 5_000
    back = world.device.json("thread", "handoff", thread, "--to", "one")
    assert state(Path(back["folder"])) == state(there)
    assert owners(world, thread) == ["one"]
    turn(world, "one", thread, "the third message")
    for text in ("the first message", "the second message"):
        assert text in conversation(world)


def test_an_active_goal_stops_for_the_move_and_goes_on_there(world: World) -> None:
    thread = world.thread("one", "goal", "hello")
    # The official agent begins turn after turn for it.
    world.ask("one", "thread.goal", thread=thread, objective="never done")
    assert world.device.json("thread", "handoff", thread, "--to", "two")["moved"]
    asked = len(world.model.requests)
    until(lambda: len(world.model.requests) > asked, "the goal to be worked on")
    assert str(world.hosts["two"].workspace / "goal") in conversation(world)
    world.ask("two", "thread.goal", thread=thread, state="paused")


STEPS = (
    "reserve", "prepare", "freeze", "receive", "have", "restore", "commit", "own", "retire",
)  # fmt: skip
# Both before and after each step: some minutes.
EVERY = os.environ.get("CODEXCTL_TEST_EVERY_STEP") == "1"


class Died(Exception):
    """The device was killed here."""


def stop_after(move: Any, method: str, world: World, victim: str, *, before: bool) -> None:
    """Have `victim` killed around the first call of `method`, and the device end there."""
    ask = move._one
    armed = [True]

    def asked(remote: Any, name: str, params: dict[str, Any]) -> dict[str, Any]:
        if name != f"handoff.{method}" or not armed[0]:
            return dict(ask(remote, name, params))
        armed[0] = False
        if before:
            world.kill(victim)
            if victim in ("device", *world.hosts):
                raise Died
            return dict(ask(remote, name, params))
        ask(remote, name, params)
        world.kill(victim)
        raise Died

    move._one = asked


def begin(world: World, thread: str, method: str, victim: str, *, before: bool) -> None:
    """A handoff from one to two that ends, for the device, at `method`."""
    with world.handoff("one", "two") as move:
        plan = move.plan(thread)
        stop_after(move, method, world, victim, before=before)
        try:
            move.start(plan)
        except (Died, CodexctlError):
            pass


def assert_one_owner(world: World, thread: str) -> None:
    """By the journals, at any instant; and no side lets it act that is not the owner."""
    ours = [row for row in world.rows("one", thread) if row["side"] == "source"]
    theirs = [row for row in world.rows("two", thread) if row["side"] == "target"]
    given = bool(ours) and ours[0]["state"] in ("committed", "retired")
    if theirs and theirs[0]["state"] == "owned":
        assert given
    if given:
        assert theirs[0]["state"] in ("ready", "owned")


@pytest.mark.parametrize("method", STEPS)
def test_a_device_that_dies_at_a_step_leaves_what_resume_ends(world: World, method: str) -> None:
    name = f"device-{method}"
    thread = world.thread("one", name, "hello")
    before = state(world.hosts["one"].workspace / name)
    begin(world, thread, method, "device", before=False)
    assert_one_owner(world, thread)
    if any(not row["over"] for host in world.hosts for row in world.rows(host, thread)):
        world.device.json("thread", "handoff", thread, "--resume")
    (owner,) = owners(world, thread)
    assert owner == ("one" if method in ("reserve", "prepare") else "two")
    tree = next(world.hosts[owner].workspace.glob(f"{name}*"))
    assert state(tree) == before


VICTIMS = ("one", "two", "codex one", "codex two", "relay")
# Each process at each step: before or after it by turns.
CRASHES = [
    (victim, step, bool((VICTIMS.index(victim) + STEPS.index(step)) % 2))
    for victim, step in itertools.product(VICTIMS, STEPS)
]
if EVERY:
    CRASHES = list(itertools.product(VICTIMS, STEPS, (True, False)))


@pytest.mark.parametrize(("victim", "method", "before"), CRASHES)
def test_whatever_dies_there_is_one_owner_and_a_way_on(
    world: World, victim: str, method: str, before: bool
) -> None:
    name = f"{victim}-{method}-{'before' if before else 'after'}".replace(" ", "-")
    thread = world.thread("one", name, "hello")
    wanted = state(world.hosts["one"].workspace / name)
    begin(world, thread, method, victim, before=before)
    assert_one_owner(world, thread)
    if any(not row["over"] for host in world.hosts for row in world.rows(host, thread)):
        world.device.json("thread", "handoff", thread, "--resume")
    assert_one_owner(world, thread)
    (owner,) = owners(world, thread)
    tree = next(world.hosts[owner].workspace.glob(f"{name}*"))
    assert state(tree) == wanted
    turn(world, owner, thread, f"on {owner} after {name}")
    assert "hello" in conversation(world)


@pytest.mark.parametrize("method", ["freeze", "restore"])
def test_undo_leaves_the_source_as_it_was(world: World, method: str) -> None:
    name = f"undo-{method}"
    thread = world.thread("one", name, "hello")
    begin(world, thread, method, "device", before=False)
    with pytest.raises(CodexctlError, match="handed off"):
        world.ask("one", "thread.send", thread=thread, text="x", key="k")
    done = world.device.json("thread", "handoff", thread, "--undo")
    assert (done["moved"], done["states"]) == (False, ["undone", "discarded"])
    assert owners(world, thread) == ["one"]
    assert not (world.hosts["two"].workspace / name).exists()
    turn(world, "one", thread, "still here")
    assert world.device.json("thread", "handoff", thread, "--to", "two")["moved"]


def test_an_undo_needs_the_source_alone(world: World) -> None:
    thread = world.thread("one", "alone", "hello")
    begin(world, thread, "restore", "device", before=False)
    world.hosts["two"].kill()
    done = world.device.run("thread", "handoff", thread, "--undo", "--json")
    assert json.loads(done.stdout)["states"] == ["undone", None]
    assert b"two is not reached" in done.stderr
    turn(world, "one", thread, "on its own")
    world.hosts["two"].start(world.url)
    (row,) = world.rows("two", thread)
    assert row["state"] == "ready"
    world.device.json("thread", "handoff", thread, "--undo")
    (row,) = world.rows("two", thread)
    assert row["state"] == "discarded"
    assert owners(world, thread) == ["one"]


def waiting(world: World, thread: str) -> dict[str, Any]:
    """The approval that a turn of the thread waits for, after one was begun that asks."""
    world.ask("one", "thread.send", thread=thread, text="escalate", key=secrets.token_hex(8))

    def pending() -> dict[str, Any] | None:
        found = world.ask("one", "approval.list", state="pending")
        return next((one for one in found if one["thread"] == thread), None)

    found: dict[str, Any] = until(pending, "an approval")
    return found


def test_a_turn_that_waits_for_a_person_is_waited_for_and_named(world: World) -> None:
    thread = world.thread("one", "asks", "hello")
    approval = waiting(world, thread)
    plan = world.device.json("thread", "handoff", thread, "--to", "two", "--dry-run")
    assert [one["id"] for one in plan["approvals"]] == [approval["id"]]
    with world.device.start("thread", "handoff", thread, "--to", "two", "--json") as running:
        named = f"codexctl thread approve {approval['id']}".encode()
        until(lambda: any(named in line for line in running.errors), "the approval to be named")
        assert [row["state"] for row in world.rows("one", thread)] == ["frozen"]
        world.ask(
            "one", "approval.answer", id=approval["id"], hash=approval["hash"], decision="accept"
        )
        assert running.process.wait(60) == 0
    turn(world, "two", thread, "and then")
    assert "done" in conversation(world)


def test_interrupt_ends_the_turn_and_what_it_asked(world: World) -> None:
    thread = world.thread("one", "stops", "hello")
    approval = waiting(world, thread)
    done = world.device.json("thread", "handoff", thread, "--to", "two", "--interrupt")
    assert done["moved"]
    (ended,) = [
        a for a in world.ask("one", "approval.list", state="all") if a["id"] == approval["id"]
    ]
    assert ended["state"] == "withdrawn"


def test_a_codex_that_cannot_read_the_conversation_sends_it_back(world: World) -> None:
    thread = world.thread("one", "unreadable", "hello")
    path = Path(world.idle("one", thread)["path"])
    readable = path.read_bytes()
    strange = readable.replace(b'"session_meta"', b'"session_2030"')
    with world.handoff("one", "two") as move:
        send = move._send

        def change(frozen: dict[str, Any]) -> None:
            # As if the source's codex wrote what the target's does not know.
            path.write_bytes(strange)
            frozen["parts"]["rollout"]["sha256"] = hashlib.sha256(strange).hexdigest()
            send(frozen)

        move._send = change  # type: ignore[method-assign]  # see above
        with pytest.raises(CodexctlError, match="cannot read this thread") as caught:
            move.start(move.plan(thread))
    assert "codex version" in caught.value.hint
    path.write_bytes(readable)
    assert owners(world, thread) == ["one"]
    assert not (world.hosts["two"].workspace / "unreadable").exists()
    assert not list(world.hosts["two"].codex_home.rglob(f"*{thread}*"))


def test_a_bundle_that_is_damaged_on_the_way_is_refused(world: World) -> None:
    thread = world.thread("one", "damaged", "hello")
    with world.handoff("one", "two") as move:
        send = move._send

        def damage(frozen: dict[str, Any]) -> None:
            bundle = world.hosts["one"].machine.home / "handoff" / thread / "bundle"
            bundle.write_bytes(bundle.read_bytes()[:-1] + b"x")
            send(frozen)

        move._send = damage  # type: ignore[method-assign]  # as a bad disk would
        with pytest.raises(CodexctlError, match="SHA-256 differs"):
            move.start(move.plan(thread))
    assert owners(world, thread) == ["one"]
    assert world.device.json("thread", "handoff", thread, "--to", "two")["moved"]


def test_a_tree_that_changes_meanwhile_is_not_left_behind(world: World) -> None:
    thread = world.thread("one", "moving", "hello")
    tree = world.hosts["one"].workspace / "moving"
    with world.handoff("one", "two") as move:
        send = move._send

        def change(frozen: dict[str, Any]) -> None:
            send(frozen)
            write(tree, "a.txt", "changed again\n")

        move._send = change  # type: ignore[method-assign]  # a person at the keyboard
        with pytest.raises(CodexctlError, match="the working tree changed"):
            move.start(move.plan(thread))
    assert owners(world, thread) == ["one"]
    done = world.device.json("thread", "handoff", thread, "--to", "two")
    assert (Path(done["folder"]) / "a.txt").read_text() == "changed again\n"


def test_what_is_there_is_not_overwritten(world: World) -> None:
    thread = world.thread("one", "taken", "hello")
    theirs = write(world.hosts["two"].workspace / "taken", "file", "theirs")
    done = world.device.json("thread", "handoff", thread, "--to", "two")
    assert done["folder"] == f"{theirs.parent}-{thread[-8:]}"
    assert [path.name for path in theirs.parent.iterdir()] == ["file"]
    again = world.device.run(
        "thread", "handoff", thread, "--to", "one", "--path", "moving", check=126
    )
    assert b"is there already" in again.stderr


@pytest.mark.parametrize("name", ["nothing-like-it", "two:nothing"])
def test_a_thread_that_is_not_there(world: World, name: str) -> None:
    failed = world.device.run("thread", "handoff", name, "--to", "one", check=2)
    assert b"no thread" in failed.stderr
    failed = world.device.run("thread", "handoff", name, "--resume", check=2)
    assert b"no handoff of" in failed.stderr


def test_fifty_mebibytes_of_conversation_pass_through_little_memory(world: World) -> None:
    thread = world.thread("one", "long", "hello")
    path = Path(world.idle("one", thread)["path"])
    last = json.loads(path.read_bytes().splitlines()[-1])
    with path.open("ab") as rollout:
        while rollout.tell() < 50 << 20:
            last["ordinal"] += 1
            last["payload"] = {"type": "background_event", "message": "x" * 100_000}
            rollout.write(json.dumps(last).encode() + b"\n")
    before = {name: memory(world, name) for name in world.hosts}
    plan = world.device.json("thread", "handoff", thread, "--to", "two", "--dry-run")
    assert plan["send"]["rollout"] > 50 << 20
    assert world.device.json("thread", "handoff", thread, "--to", "two")["moved"]
    for name, size in before.items():
        assert memory(world, name) - size < 40 << 20
    # Back there goes only what the source has not had yet.
    plan = world.device.json("thread", "handoff", thread, "--to", "one", "--dry-run")
    assert plan["send"]["rollout"] < 100_000


def memory(world: World, host: str) -> int:
    """The most bytes that the host's daemon ever had; 0 where the system does not tell."""
    running = world.hosts[host].running
    assert running is not None
    return peak_kib(running.process.pid) * 1024
