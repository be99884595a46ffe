"""Copies over a real sshd: trees, resuming, links in the way, machines with little on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codexctl.client import sftp
from codexctl.client.sftp import download, upload
from codexctl.errors import AuthenticationFailed, CodexctlError, ConnectionFailed
from codexctl.wire.files import PART_SUFFIX
from tests.copy.test_transfer import tree
from tests.ssh.conftest import World
from tests.support.sshd import Sshd

DEADLINE_S = 60
WHOLE_S = 10**9


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "sub" / "big").write_bytes(os.urandom(9 << 20))
    (folder / "sub" / "deep" / "run").write_text("#!/bin/sh\n")
    (folder / "sub" / "deep" / "run").chmod(0o755)
    (folder / "link").symlink_to("sub/big")
    with open(os.fsencode(folder) + b"/odd \xff'\n", "wb") as file:
        file.write(b"not UTF-8")
    for number in range(60):
        (folder / f"small{number}").write_text(f"{number}")
    (folder / "sub").chmod(0o555)
    for path in [*folder.rglob("*"), folder]:
        # SFTP has whole seconds.
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    return folder


def times_of_links_apart(found: dict[str, tuple[str, int, int, bytes]]) -> dict[str, object]:
    return {
        name: (kind, mode, 0 if kind == "link" else mtime, content)
        for name, (kind, mode, mtime, content) in found.items()
    }


def test_up_and_down(world: World, source: Path, tmp_path: Path) -> None:
    up = upload(world.target(), [str(source)], f"{tmp_path}/there")
    assert up.failed == []
    assert (up.files, up.directories, up.symlinks) == (63, 4, 1)
    assert times_of_links_apart(tree(tmp_path / "there")) == times_of_links_apart(tree(source))
    down = download(world.target(), [f"{tmp_path}/there"], f"{tmp_path}/back")
    assert down.counts() == {**up.counts()}
    assert times_of_links_apart(tree(tmp_path / "back")) == times_of_links_apart(tree(source))
    assert not list(tmp_path.glob("*" + PART_SUFFIX))


def test_a_second_copy_sends_nothing_that_is_large(
    world: World, source: Path, tmp_path: Path
) -> None:
    for copy, target in ((upload, "there"), (download, "back")):
        (tmp_path / target).mkdir()
        copy(world.target(), [f"{source}/."], f"{tmp_path}/{target}")
        again = copy(world.target(), [f"{source}/."], f"{tmp_path}/{target}")
        assert again.failed == []
        assert again.resumed_bytes == 9 << 20
        assert again.files == 63


def test_into_a_folder_with_patterns_and_names(world: World, source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    upload(world.target(), [f"{source}/small1*", f"{source}/sub/deep"], f"{tmp_path}/there")
    assert (tmp_path / "there" / "deep" / "run").exists()
    download(world.target(), [f"{tmp_path}/there/small*"], f"{tmp_path}/back/")
    assert len(os.listdir(tmp_path / "back")) == 11
    upload(world.target(), [f"{source}/small1"], f"{tmp_path}/there/renamed")
    assert (tmp_path / "there" / "renamed").read_text() == "1"


@pytest.mark.parametrize("copy", [upload, download])
@pytest.mark.parametrize("good", [True, False])
def test_a_partial_file_is_continued_only_if_it_is_one(
    world: World, source: Path, tmp_path: Path, copy: object, good: bool
) -> None:
    data = (source / "sub" / "big").read_bytes()
    part = tmp_path / f"big{PART_SUFFIX}"
    part.write_bytes(data[: 5 << 20] if good else b"x" * (5 << 20))
    assert callable(copy)
    summary = copy(world.target(), [f"{source}/sub/big"], f"{tmp_path}/")
    assert summary.resumed_bytes == (5 << 20 if good else 0)
    assert (tmp_path / "big").read_bytes() == data
    assert not part.exists()


CP = """
import sys
from codexctl.client import sftp
from codexctl.client.ssh_config import find_alias
way, source, target = sys.argv[1:]
copy = sftp.upload if way == "up" else sftp.download
copy(find_alias("web"), [source], target)
"""


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_copy_that_was_killed_goes_on(world: World, tmp_path: Path, way: str) -> None:
    size = 60 << 20
    block = os.urandom(1 << 20)
    with (tmp_path / "big").open("wb") as file:
        for number in range(size >> 20):
            file.write(number.to_bytes(4, "big") + block[4:])
    (tmp_path / "there").mkdir()
    part = tmp_path / "there" / f"big{PART_SUFFIX}"
    argv = [sys.executable, "-c", CP, way, f"{tmp_path}/big", f"{tmp_path}/there/"]
    process = subprocess.Popen(argv)
    deadline = time.monotonic() + DEADLINE_S
    while not part.exists() or part.stat().st_size < 5 << 20:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    copy = upload if way == "up" else download
    summary = copy(world.target(), [f"{tmp_path}/big"], f"{tmp_path}/there/")
    assert summary.bytes == size
    assert summary.resumed_bytes >= 5 << 20
    assert (tmp_path / "there" / "big").read_bytes() == (tmp_path / "big").read_bytes()


def test_links_in_the_way_are_not_followed(world: World, source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    for copy, name in ((upload, "there"), (download, "back")):
        there = tmp_path / name
        there.mkdir()
        (there / "sub").symlink_to(outside)
        (there / f"small1{PART_SUFFIX}").symlink_to(outside / "victim")
        summary = copy(world.target(), [f"{source}/."], str(there))
        failed = {os.path.basename(entry["path"]) for entry in summary.failed}
        assert failed == {"sub", "big", "deep", "run", "small1"}
        assert os.listdir(outside) == ["victim"]
        assert (outside / "victim").read_text() == "precious"
        assert (there / "small2").exists()


def test_what_is_not_there(world: World, tmp_path: Path) -> None:
    with pytest.raises(CodexctlError, match="nothing does not exist on web"):
        download(world.target(), [f"{tmp_path}/nothing"], f"{tmp_path}/")
    with pytest.raises(CodexctlError, match="there is no directory"):
        upload(world.target(), [f"{tmp_path}/config"], f"{tmp_path}/no/such")
    with pytest.raises(CodexctlError, match="does not exist"):
        upload(world.target(), [f"{tmp_path}/nothing"], f"{tmp_path}/")


def test_a_fifo_is_left_out(world: World, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    os.mkfifo(tmp_path / "src" / "fifo")
    (tmp_path / "src" / "kept").write_text("x")
    for copy, name in ((upload, "there"), (download, "back")):
        summary = copy(world.target(), [f"{tmp_path}/src"], f"{tmp_path}/{name}")
        assert os.listdir(tmp_path / name) == ["kept"]
        assert len(summary.skipped) == 1
        assert summary.failures == 0


def test_a_machine_without_commands_copies_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sshd.start(tmp_path / "own", "ForceCommand internal-sftp") as server:
        world = World(tmp_path, server)
        world.add("web")
        world.trust(server)
        data = os.urandom(2 << 20)
        (tmp_path / "f").write_bytes(data)
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / f"f{PART_SUFFIX}").write_bytes(data[: 1 << 20])
        for copy in (upload, download):
            summary = copy(world.target(), [f"{tmp_path}/f"], f"{tmp_path}/there/")
            assert summary.resumed_bytes == 0
            assert (tmp_path / "there" / "f").read_bytes() == data


def test_without_sftp_the_way_is_named(tmp_path: Path) -> None:
    with Sshd.start(tmp_path / "own", "Subsystem sftp /nowhere/sftp-server") as server:
        world = World(tmp_path, server)
        world.add("web")
        world.trust(server)
        with pytest.raises(CodexctlError, match="SFTP"):
            download(world.target(), ["f"], f"{tmp_path}/")


def test_a_connection_that_is_cut_is_255(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sshd.start(tmp_path / "own") as server:
        world = World(tmp_path, server)
        world.add("web")
        world.trust(server)
        (tmp_path / "big").write_bytes(bytes(60 << 20))
        (tmp_path / "there").mkdir()
        for copy in (upload, download):
            with pytest.raises(ConnectionFailed, match="lost web") as caught:
                copy(
                    world.target(),
                    [f"{tmp_path}/big"],
                    f"{tmp_path}/there/",
                    step=lambda moved: server.cut(),
                )
            assert caught.value.exit_code == 255
            assert "goes on where it broke off" in caught.value.hint


def test_an_unknown_host_is_not_copied_to(world: World, tmp_path: Path) -> None:
    world.known_hosts.unlink()
    with pytest.raises(AuthenticationFailed, match="not known"):
        upload(world.target(), [str(world.config)], "x")


def test_progress_counts_bytes(world: World, source: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    sftp.upload(world.target(), [f"{source}/sub/big"], f"{tmp_path}/", step=seen.append)
    assert seen[-1] == 9 << 20
    assert seen == sorted(seen)
