"""A network that drops, in each stage and in each call: the run goes on or is resumed.

Nothing that bills is left unnamed, every failure has a sentence and a hint, and `destroy` brings
all of it to an end. The tables are printed (pytest -s).
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.provision import machine
from tests.provision.conftest import World
from tests.provision.network import Network
from tests.provision.test_kill import PARALLEL, PROVISION, points_of

DESTROY = ("workspace", "destroy", "box", "--yes", "--json")
RESUME = ("provision", "--resume", "box", "--json")


def outcome(world: World, *command: str, **env: str) -> str:
    """`went on`, or the sentence of a failure that says what to do."""
    done = world.run(*command, **env)
    if done.returncode == 0:
        return "went on"
    error = json.loads(done.stderr.splitlines()[-1])
    assert error["message"], done.stderr
    assert error["hint"], done.stderr
    assert "Traceback" not in done.stderr
    return str(error["message"])


def dropped_at(folder: Path, number: int) -> str:
    world = World(folder)
    try:
        with Network() as network:
            world.env |= network.variables
            said = outcome(world, *PROVISION, CODEXCTL_TEST_DROP=str(number))
            assert network.drops == 1
            if said != "went on":
                assert outcome(world, *RESUME) == "went on"
            state = json.loads(world.ok("workspace", "list", "--json"))[0]
            assert (state["stage"], state["error"]) == ("ready", None)
            assert len(world.things()) == 2
            return said
    finally:
        machine.halt_all(folder)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_way_to_the_machine_drops_after_each_step(
    machines: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with Network() as network:
        machines.env |= network.variables
        labels = points_of(machines, *PROVISION)
    stages = ("told", "host key")
    numbers = [n for n, label in enumerate(labels, 1) if label.startswith(stages)]
    assert len(numbers) > 12
    with ThreadPoolExecutor(PARALLEL) as pool:
        folders = [machines.folder / f"drop-{number}" for number in numbers]
        rows = list(pool.map(dropped_at, folders, numbers))
    assert set(rows) == {"went on"}, rows
    table = ["\nthe way to the machine drops after"]
    table += [f"  {labels[n - 1]:<28} {row}" for n, row in zip(numbers, rows, strict=True)]
    with capsys.disabled():
        sys.stdout.write("\n".join(table) + "\n")


def lost(folder: Path, number: int, what: str) -> tuple[str, str]:
    """A row: what became of the provision and of the destruction that lost this call."""
    world = World(folder)
    try:
        fault = {"CODEXCTL_TEST_LOSE": f"{number} {what}"}
        up = outcome(world, *PROVISION, **fault)
        if up != "went on" and world.things():
            assert "box" in world.ok("workspace", "list")
            assert outcome(world, *RESUME) == "went on"
        if not world.things():
            return up, "nothing was made"
        down = outcome(world, *DESTROY, **fault)
        if down != "went on":
            assert outcome(world, *DESTROY) == "went on"
        assert world.things() == []
        assert world.left_here() == []
        return up, down
    finally:
        machine.halt_all(folder)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_network_drops_in_each_call_of_the_cloud(
    machines: World, capsys: pytest.CaptureFixture[str]
) -> None:
    # account, plan, create, describe, describe; and account, destroy, list, destroy, list
    both = ("request", "answer")
    calls = [(1, "request"), (2, "answer"), *((n, what) for n in (3, 4) for what in both)]
    calls.append((5, "request"))
    with ThreadPoolExecutor(PARALLEL) as pool:
        rows = list(
            pool.map(
                lambda call: lost(machines.folder / f"{call[0]}-{call[1]}", *call),
                calls,
            )
        )
    table = [f"\n{'lost':<12} {'provision':<12} destroy"]
    for (number, what), (up, down) in zip(calls, rows, strict=True):
        table.append(f"{f'{what} {number}':<12} {up:<12} {down}")
    with capsys.disabled():
        sys.stdout.write("\n".join(table) + "\n")
    assert {up for up, _ in rows} == {"went on"}
