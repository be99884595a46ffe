"""A disk that is full at each write of a provision and of a destruction: said, and mended.

The home and the ssh config lie on a small file system of their own with a little more room in each
row, so that the first row fails in the first write and the last one in none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.provision import machine
from tests.provision.conftest import World
from tests.provision.test_kill import PARALLEL, PROVISION

PAGE = 4096
DISK_BYTES = 2 << 20
LEFT_PAGES = (0, 8, 20, 45, 75, 110, 150, 400)
ABOUT_SPACE = ("space", "full", "disk I/O", "No space")


class Disk:
    """A small file system; `leave` fills it up but for so many pages, `free` empties it again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def leave(self, pages: int) -> None:
        self.free()
        left = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
        with open(self._ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(left - pages * PAGE, PAGE))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    folder.mkdir()
    options = f"size={DISK_BYTES},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def said_of(world: World, *command: str) -> str:
    """ "" where it went on, else the sentence, which is about the disk and comes with a hint."""
    done = world.run(*command)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    error = json.loads(lines[-1])
    assert "Traceback" not in done.stderr
    assert any(word in error["message"] for word in ABOUT_SPACE), error
    assert error["hint"], error
    return str(error["message"])


def row(folder: Path, pages: int) -> tuple[str, str]:
    """What a provision said, and a destruction on as full a disk; then nothing is left."""
    world = World(folder)
    with small_disk(folder / "disk") as disk:
        try:
            world.env |= {
                "CODEXCTL_HOME": str(disk.folder / "home"),
                "CODEXCTL_SSH_CONFIG": str(disk.folder / "ssh" / "config"),
            }
            (disk.folder / "ssh").mkdir()
            disk.leave(pages)
            up = said_of(world, *PROVISION)
            made = len(world.things())
            disk.free()
            known = json.loads(world.ok("workspace", "list", "--json"))
            assert made == 0 or [w["name"] for w in known] == ["box"], "what bills is named"
            if not known:
                return up, "-"
            if up and known[0]["stage"] not in ("planned", "keyed"):
                world.ok("provision", "--resume", "box", "--json")
            disk.leave(pages // 4)
            down = said_of(world, "workspace", "destroy", "box", "--yes", "--json")
            disk.free()
            if down:
                world.ok("workspace", "destroy", "box", "--yes")
            assert world.things() == []
            left = sorted(path.name for path in disk.folder.glob("home/workspaces/*/*"))
            assert left == []
            assert not (disk.folder / "ssh" / "config").exists()
            return up, down
        finally:
            machine.halt_all(folder)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_full_disk_at_each_write_is_said_and_leaves_nothing_unnamed(
    machines: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(PARALLEL) as pool:
        folders = [machines.folder / f"disk-{number}" for number in LEFT_PAGES]
        rows = list(pool.map(row, folders, LEFT_PAGES))
    table = [f"\n{'KiB left':<9} {'provision':<40} destroy, with a quarter of that"]
    for number, (up, down) in zip(LEFT_PAGES, rows, strict=True):
        table.append(f"{number * PAGE // 1024:<9} {_last(up):<40} {_last(down)}")
    with capsys.disabled():
        sys.stdout.write("\n".join(table) + "\n")
    assert rows[0][0], "the first write fails"
    assert not rows[-1][0], "with room enough none fails"


def _last(said: str) -> str:
    return said.rpartition(": ")[2] or "went on"
