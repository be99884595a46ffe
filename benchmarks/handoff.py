"""Moving a thread: a 200 MiB repository that the target has a clone of, with 1 MiB of changes.

Two hosts with a relay each and the real codex with a scripted model, all on loopback; from the
command to its end. Further rows: the same for 100,000 files, and the most memory that either took.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.row import Row

ROUNDS = 3
FILES, FILE_BYTES = 2000, 100 * 1024
MANY_FILES = 100_000
CHANGED_BYTES = 1 << 20


def rows() -> list[Row]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.handoff.world import World
    from tests.support.codex import CODEX, say, serving_model

    if CODEX is None:
        sys.stderr.write("the official codex is not installed: handoff is not measured\n")
        return []
    with (
        tempfile.TemporaryDirectory(prefix="codexctl-bench-") as folder,
        serving_model([[say("yes")]]) as model,
    ):
        world = World(Path(folder), model)
        try:
            seconds = sorted(_clone(world, Path(folder), number) for number in range(ROUNDS))
            many, memory = _many(world)
        finally:
            world.close()
    return [
        Row("handoff, 200 MiB cloned, 1 MiB new", seconds[ROUNDS // 2], "< 3", "<= 1.5", "s"),
        Row("handoff, 100,000 untracked files", many, unit="s"),
        Row("handoff, most memory of a host", memory, "<= 150", "<= 100", "MiB"),
    ]


def _clone(world: Any, folder: Path, number: int) -> float:
    """Seconds of one handoff of a large repository that the target has."""
    origin = folder / "origin"
    if not origin.exists():
        _large(origin)
    name = f"large{number}"
    tree = world.hosts["one"].workspace / name
    _git(folder, "clone", "--quiet", "--no-hardlinks", str(origin), str(tree))
    clone = world.hosts["two"].workspace / f"clone{number}"
    _git(folder, "clone", "--quiet", "--no-hardlinks", str(origin), str(clone))
    # As in a tree that has been worked in: git has seen its files in an earlier second.
    time.sleep(1.1)
    _git(tree, "update-index", "--refresh")
    (tree / "new.bin").write_bytes(random.randbytes(CHANGED_BYTES))
    return _hand_over(world, name)


def _many(world: Any) -> tuple[float, float]:
    tree = world.hosts["one"].workspace / "many"
    tree.mkdir()
    _git(tree, "init", "--quiet")
    for number in range(MANY_FILES):
        path = tree / str(number % 500) / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n")
    seconds = _hand_over(world, "many")
    from tests.support.memory import peak_kib

    peaks = [peak_kib(host.running.process.pid) / 1024 for host in world.hosts.values()]
    return seconds, max(peaks)


def _hand_over(world: Any, name: str) -> float:
    (made,) = world.ask("one", "thread.start", cwd=name, prompt="hello", name=name)
    world.idle("one", made["id"])
    begin = time.perf_counter()
    done = world.device.run(
        "thread", "handoff", made["id"], "--to", "two", "--json", timeout=600.0
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    assert json.loads(done.stdout)["moved"]
    return seconds


def _large(origin: Path) -> None:
    origin.mkdir()
    _git(origin, "init", "--quiet")
    chance = random.Random(1)
    for number in range(FILES):
        path = origin / str(number % 40) / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chance.randbytes(FILE_BYTES))
    _git(origin, "add", ".")
    _git(origin, "commit", "--quiet", "-m", "large")


def _git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, env=dict(os.environ))
