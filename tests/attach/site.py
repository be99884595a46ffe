"""A host `box` with the real codex, and a laptop with the real codex that is paired with it.

The laptop's way to the relay leads over `tap`, which can be cut.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.codex import CODEX, Model, codex_environment, make_codex_home
from tests.support.programs import Machine
from tests.support.tap import Tap
from tests.threads.world import World, living


class Site:
    def __init__(self, folder: Path, world: World, tap: Tap) -> None:
        assert CODEX is not None
        self.world = world
        self.box = world.box
        self.tap = tap
        self.codex_home = folder / "laptop-codex"
        self.codex_home.mkdir()
        self.person = folder / "laptop-person"
        self.person.mkdir()
        self.project = folder / "project"
        self.project.mkdir()
        self.programs = folder / "laptop-bin"
        self.programs.mkdir()
        (self.programs / "codex").symlink_to(CODEX)
        self.laptop = Machine(
            folder / "own-laptop",
            CODEX_HOME=str(self.codex_home),
            HOME=str(self.person),
            PATH=f"{self.programs}:{os.environ['PATH']}",
            RUST_LOG="off",
        )
        offer = json.loads(self.box.machine.run("pair", "--show", "--json").stdout)
        relay = f"http://{self.box.listen}"
        self.laptop.run("pair", offer["url"].replace(relay, tap.url), "--name", "box")

    def agent(self, model: Model, *, sandbox: str, task: str = "go") -> subprocess.Popen[bytes]:
        """`codex exec` on the laptop, in the folder that stands for the host's workspace."""
        assert CODEX is not None
        make_codex_home(self.codex_home, model, approval="never", sandbox=sandbox)
        return subprocess.Popen(
            [CODEX, "exec", "--skip-git-repo-check", "-C", str(self.project), task],
            env=codex_environment(self.codex_home, HOME=str(self.person)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    with living(folder) as world, Tap(world.box.listen) as tap:
        yield Site(folder, world, tap)
