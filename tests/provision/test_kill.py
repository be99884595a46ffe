"""SIGKILL at every step of a provision and of a destroy, and Ctrl-C, with real processes.

After each, one of resume-and-destroy, destroy or reap has to bring it to an end, and then nothing
may be left: not in the cloud, not on this device. The table is printed (pytest -s).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.provision import machine
from tests.provision.conftest import World

PROVISION = ("provision", "reference", "--name", "box", "--bare", "--yes", "--json")
PARALLEL = 2 * (os.cpu_count() or 1)


def resume_then_destroy(world: World) -> None:
    world.ok("provision", "--resume", "box", "--json")
    world.ok("workspace", "destroy", "box", "--yes")


def destroy(world: World) -> None:
    done = world.run("workspace", "destroy", "box", "--yes")
    assert done.returncode == 0 or "there is no workspace box" in done.stderr, done.stderr


def reap(world: World) -> None:
    world.ok("workspace", "reap", "--yes", "--json")
    # What came to its end before the kill is a workspace as any other, and no orphan.
    destroy(world)


ENDINGS: tuple[Callable[[World], None], ...] = (resume_then_destroy, destroy, reap)


def points_of(world: World, *args: str) -> list[str]:
    """The labels of a run that nobody kills."""
    log = world.folder / "points"
    world.ok(*args, CODEXCTL_TEST_POINTS=str(log))
    return log.read_text().splitlines()


def killed_at(folder: Path, number: int, before: tuple[str, ...], command: tuple[str, ...]) -> str:
    """Kill `command` at the point, end it, count; a row of what was there and what is left."""
    world = World(folder)
    try:
        if before:
            world.ok(*before)
        done = world.run(*command, CODEXCTL_TEST_KILL=str(number))
        assert done.returncode == -signal.SIGKILL, done.stderr
        there = len(world.things())
        ending = ENDINGS[number % len(ENDINGS)]
        if before and ending is resume_then_destroy:
            ending = destroy
        ending(world)
        assert world.things() == []
        assert world.left_here() == []
        return f"{there:>5}  {ending.__name__:<20} {len(world.things())}"
    finally:
        machine.halt_all(folder)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("what", ["provision", "destroy"])
def test_killed_at_every_step_it_is_brought_to_an_end(
    machines: World, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before: tuple[str, ...] = ()
    command = PROVISION
    if what == "destroy":
        before, command = PROVISION, ("workspace", "destroy", "box", "--yes", "--json")
        machines.ok(*before)
    labels = points_of(machines, *command)
    assert len(labels) > 10
    with ThreadPoolExecutor(PARALLEL) as pool:
        rows = list(
            pool.map(
                lambda number: killed_at(
                    machines.folder / f"kill-{number}", number, before, command
                ),
                range(1, len(labels) + 1),
            )
        )
    table = [f"\n{what + ', killed after':<30} there  ended by             left"]
    table += [f"  {label:<28} {row}" for label, row in zip(labels, rows, strict=True)]
    with capsys.disabled():
        sys.stdout.write("\n".join(table) + "\n")


STEPS = (
    "journal keyed",
    "journal ordered",
    "machine made",
    "told address waiting",
    "told cloud-init waiting",
    "host key rotation",
    "told paired skipped",
)


def interrupted_at(folder: Path, label: str) -> str:
    world = World(folder)
    try:
        done = world.run(*PROVISION, CODEXCTL_TEST_INTERRUPT=label)
        assert done.returncode == 130, done.stderr
        error = json.loads(done.stderr.splitlines()[-1])
        assert "what was made of box may bill" in error["message"]
        assert "--resume box" in error["hint"]
        assert "destroy box" in error["hint"]
        made = len(world.things())
        ending = ENDINGS[STEPS.index(label) % len(ENDINGS)]
        ending(world)
        assert world.things() == []
        assert world.left_here() == []
        return f"{made:>5}  {ending.__name__:<20} {len(world.things())}"
    finally:
        machine.halt_all(folder)


@pytest.mark.timeout(400)
def test_interrupted_it_says_what_may_bill_and_is_brought_to_an_end(
    machines: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(PARALLEL) as pool:
        folders = [machines.folder / f"interrupt-{number}" for number in range(len(STEPS))]
        rows = list(pool.map(interrupted_at, folders, STEPS))
    table = [f"\n{'provision, Ctrl-C after':<30} there  ended by             left"]
    table += [f"  {label:<28} {row}" for label, row in zip(STEPS, rows, strict=True)]
    with capsys.disabled():
        sys.stdout.write("\n".join(table) + "\n")
