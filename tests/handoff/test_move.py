"""Threads move between real hosts: conversation, tree, and back; whatever dies on the way."""

from __future__ import annotations

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
from tests.support.codex import Request, needs_codex, say, serving_model

pytestmark = needs_codex


def said(request: Request) -> list[Any]:
    """The model repeats how much it was told, so that each answer differs."""
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
# Each process at each step, before and after it: some minutes.
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


@pytest.mark.parametrize("method", STEPS if EVERY else ("prepare", "freeze", "restore", "own"))
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


CRASHES = [
    ("one", "commit", False),
    ("two", "restore", False),
    ("two", "own", True),
    ("codex two", "restore", True),
    ("codex one", "retire", True),
    ("relay", "own", True),
]
if EVERY:
    victims = ("one", "two", "codex one", "codex two", "relay")
    CRASHES = list(itertools.product(victims, STEPS, (True, False)))


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
