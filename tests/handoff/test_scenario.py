"""The whole story of a thread: two hosts, two devices, a relay, the real codex; all processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.handoff.trees import make, state, write
from tests.handoff.world import World, until
from tests.support.codex import Item, Request, needs_codex, outputs, run_command, say, serving_model
from tests.support.programs import Machine, Running

pytestmark = needs_codex
ASKING = {"sandbox_permissions": "require_escalated", "justification": "the tests need it"}


def script(request: Request) -> list[Item]:
    """Two commands that a person has to approve, then words; after that only words."""
    done = len(outputs(request))
    if done < 2:
        return [run_command(f"echo output-{done} | tee -a log.txt", call=f"c{done}", **ASKING)]
    return [{**say(f"answer {len(request['input'])}"), "id": f"m{len(request['input'])}"}]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with serving_model(script) as model, closing(World(tmp_path, model)) as made:
        yield made


def second_device(world: World, folder: Path) -> Machine:
    phone = Machine(folder)
    for host in world.hosts.values():
        offer = json.loads(host.machine.run("pair", "--show", "--json").stdout)
        phone.run("pair", offer["url"], "--name", host.name, "--device-name", "phone")
    return phone


def seen(watch: Running, method: str) -> list[dict[str, Any]]:
    """The events of that method that the watching device has printed so far."""
    return [e for e in map(json.loads, watch.printed()) if e["method"] == method]


def test_a_thread_is_watched_approved_steered_and_handed_on(world: World, tmp_path: Path) -> None:
    laptop, phone = world.device, second_device(world, tmp_path / "phone")
    tree = make(world.hosts["one"].workspace / "app", **{"a.txt": "one\n", "b.txt": "two\n"})
    write(tree, "a.txt", "changed before\n")
    start = ("thread", "start", "one", "--cwd", "app", "--name", "story", "--json", "--wait")
    started = laptop.run(*start, "fix the flaky test", check=10)
    assert b"not all is committed" in started.stderr
    thread = json.loads(started.stdout.splitlines()[0])["id"]

    with phone.start("thread", "watch", "story", "--json") as watch:
        until(lambda: seen(watch, "codexctl/events/replayed"), "the phone to watch")
        (first,) = phone.json("inbox")
        assert (first["host"], "output-0" in json.dumps(first)) == ("one", True)
        phone.run("thread", "approve", first["id"], "--yes")
        until(lambda: len(seen(watch, "codexctl/approval/requested")) == 2, "the second approval")
        # Said while the turn runs: the model hears it in the same turn.
        phone.run("thread", "steer", "story", "leave a log")
        laptop.run("thread", "approve", "story", "--yes")
        until(lambda: seen(watch, "turn/completed"), "the turn to end on the phone's screen")
    assert (tree / "log.txt").read_text() == "output-0\noutput-1\n"
    assert "leave a log" in json.dumps(world.model.requests[-1]["input"])
    late = phone.run("thread", "approve", first["id"], "--yes", check=126)
    assert b"phone has decided accept at " in late.stderr

    write(tree, "notes/new.bin", b"\0\1", 0o755)
    before = state(tree)
    world.idle("one", thread)
    moved = laptop.json("thread", "handoff", "story", "--to", "two")
    there = Path(moved["folder"])
    assert (moved["host"], state(there)) == ("two", before)

    # The other device knows nothing of the move: the old name leads on, and says where to.
    told = phone.run("thread", "send", f"one:{thread}", "go on", check=126)
    assert b"two" in told.stderr
    phone.run("thread", "send", f"two:{thread}", "go on", "--wait")
    said = json.dumps(world.model.requests[-1]["input"])
    for part in ("fix the flaky test", "output-0", "output-1", "leave a log", "answer", "go on"):
        assert part in said
    assert said.index("fix the flaky test") < said.index("output-0") < said.index("leave a log")
    assert str(there) in said
    assert state(there) == before
