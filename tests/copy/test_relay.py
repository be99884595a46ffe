"""`codexctl cp` between two real machines through a relay, the host's side in its sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.copy.test_transfer import tree
from tests.support.programs import Machine
from tests.support.programs import pair as pair_with

BIG = 80 << 20
DEADLINE_S = 60


class Pair:
    """A host and a device that is paired with it as `box`."""

    def __init__(self, host: Machine, device: Machine, workspace: Path, person: Path) -> None:
        self.host, self.device, self.workspace, self.person = host, device, workspace, person

    @property
    def here(self) -> Path:
        return self.device.cwd

    def cp(self, *argv: str) -> dict[str, Any]:
        found = self.device.json("cp", *argv)
        assert isinstance(found, dict)
        return found

    def refused(self, *argv: str) -> tuple[int, str]:
        done = self.device.run("cp", *argv, check=None)
        return done.returncode, done.stderr.decode()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    folder = tmp_path_factory.mktemp("copy")
    (folder / "workspace").mkdir()
    person = folder / "person"
    (person / ".ssh").mkdir(parents=True)
    (person / ".ssh" / "id").write_text("secret")
    host = Machine(folder / "host", HOME=str(person))
    device = Machine(folder / "device", CODEXCTL_SSH_CONFIG=os.devnull)
    argv = ("up", "--json", "--listen", "127.0.0.1:0", "--name", "box")
    with host.start(*argv, "--workspace", str(folder / "workspace")) as up:
        assert pair_with(up, device) == "box"
        yield Pair(host, device, folder / "workspace", person)


@pytest.fixture
def pair(machines: Pair) -> Pair:
    """The same machines with nothing in the workspace and in the device's folder."""
    for folder in (machines.workspace, machines.here):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return machines


def make_tree(folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "data").write_bytes(os.urandom(200_000))
    (folder / "sub" / "run").write_text("#!/bin/sh\n")
    (folder / "sub" / "run").chmod(0o750)
    (folder / "link").symlink_to("sub/data")
    with open(os.fsencode(folder) + b"/n\xff", "wb") as file:
        file.write(b"odd name")


def test_there_and_back(pair: Pair) -> None:
    make_tree(pair.here / "src")
    there = pair.cp("src", "box:copy")
    assert (there["files"], there["directories"], there["symlinks"]) == (3, 2, 1)
    assert tree(pair.workspace / "copy") == tree(pair.here / "src")
    back = pair.cp("box:copy/sub", "box:copy/link", "back/")
    assert back["files"] == 3
    assert tree(pair.here / "back" / "sub") == tree(pair.here / "src" / "sub")


def test_the_whole_workspace(pair: Pair) -> None:
    make_tree(pair.workspace / "a")
    os.mkfifo(os.fsencode(pair.workspace) + b"/fifo\xff")
    found = pair.cp("box:", "all")
    assert found["skipped"][0]["path"].endswith("fifo\\udcff")
    (pair.workspace / os.fsdecode(b"fifo\xff")).unlink()
    assert tree(pair.here / "all") == tree(pair.workspace)
    (pair.person / ".profile").write_text("PATH=x")
    pair.cp("box:~/.profile", "profile")
    assert (pair.here / "profile").read_text() == "PATH=x"


def test_patterns_are_the_hosts(pair: Pair) -> None:
    for name in ("a.log", "b.log", "c.txt"):
        (pair.workspace / name).write_text(name)
    pair.cp("box:*.log", "logs/")
    assert sorted(os.listdir(pair.here / "logs")) == ["a.log", "b.log"]


def test_what_the_host_refuses(pair: Pair) -> None:
    (pair.here / "f").write_text("x")
    status, said = pair.refused("f", "box:/etc/f")
    assert (status, "outside the workspace" in said) == (126, True)
    status, said = pair.refused("f", f"box:{pair.person}/f")
    assert status == 126
    status, said = pair.refused(f"box:{pair.person}/.ssh/id", ".")
    assert (status, "does not exist" in said) == (1, True)
    status, said = pair.refused("box:missing", ".")
    assert (status, "missing does not exist" in said) == (1, True)
    status, said = pair.refused("f", "box:no/such/folder/f")
    assert (status, "there is no directory" in said) == (1, True)
    assert os.listdir(pair.workspace) == []


def test_a_link_in_the_workspace_leads_nowhere(pair: Pair) -> None:
    """The kernel keeps the copy inside, also where a check of names could be raced."""
    outside = pair.person / "outside"
    outside.mkdir(exist_ok=True)
    (pair.workspace / "exit").symlink_to(outside)
    (pair.here / "f").write_text("x")
    status, _ = pair.refused("f", "box:exit/f")
    assert status == 126
    (pair.here / "exit").mkdir()
    (pair.here / "exit" / "f").write_text("x")
    status, said = pair.refused("exit", "box:")
    assert (status, "not copied: exit" in said) == (1, True)
    assert os.listdir(outside) == []


def test_copies_are_recorded(pair: Pair) -> None:
    (pair.here / "f").write_text("12345")
    pair.cp("f", "box:")
    records = [
        json.loads(line)
        for line in pair.host.run("audit", "export", "--format", "jsonl").stdout.splitlines()
    ]
    started, copied = [record for record in records if record["kind"] in ("copy", "copied")][-2:]
    assert (started["outcome"], copied["outcome"]) == ("started", "done")
    assert (copied["files"], copied["bytes"], copied["op"]) == (1, 5, "write")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("up", [True, False])
def test_a_copy_that_broke_off_goes_on(pair: Pair, up: bool, number: signal.Signals) -> None:
    source, target = (pair.here, pair.workspace) if up else (pair.workspace, pair.here)
    block = os.urandom(1 << 20)
    with (source / "big").open("wb") as file:
        for at in range(BIG >> 20):
            file.write(at.to_bytes(4, "big") + block[4:])
    argv = ("big", "box:") if up else ("box:big", ".")
    part = target / "big.codexctl-part"
    process = subprocess.Popen(
        [sys.executable, "-m", "codexctl", "cp", *argv],
        env=pair.device.environment,
        cwd=pair.here,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + DEADLINE_S
    while not part.exists() or part.stat().st_size < 3 << 20:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait() == (-number if number is signal.SIGKILL else 130)
    assert not (target / "big").exists()
    summary = pair.cp(*argv)
    assert summary["bytes"] == BIG
    assert summary["resumed_bytes"] >= 3 << 20
    assert (target / "big").read_bytes() == (source / "big").read_bytes()
    assert not part.exists()


def test_wrong_usage(pair: Pair) -> None:
    (pair.here / "f").write_text("x")
    for argv, word in [
        (("f", "g"), "neither side"),
        (("box:f", "box:g"), "one host to another"),
        (("box:f", "f", "."), "both sides"),
    ]:
        status, said = pair.refused(*argv)
        assert (status, word in said) == (2, True)
    assert pair.refused("f", "nobody:")[0] == 255
