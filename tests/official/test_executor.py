"""Way 1: an official executor, unmodified, with codexctl as its device."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from codexctl.client.executor.connection import MAX_UNREAD_BYTES
from tests.official.site import WITHIN_S, Site, wait_until
from tests.support.codex import needs_codex
from tests.support.programs import COMMAND_TIMEOUT_S

pytestmark = needs_codex


@contextmanager
def running(site: Site, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """`codexctl exec box -- COMMAND` with pipes for stdin and stdout."""
    process = subprocess.Popen(
        [sys.executable, "-m", "codexctl", "exec", "box", "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=site.laptop.cwd,
        env=site.laptop.environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(COMMAND_TIMEOUT_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def test_it_stands_among_the_hosts_with_its_kind_and_suite(site: Site) -> None:
    (listed,) = site.laptop.json("hosts")
    assert (listed["name"], listed["kind"], listed["online"]) == ("box", "official", True)
    shown = site.laptop.json("hosts", "show", "box")
    assert shown["suite"] == "Noise_hybridIK_X25519+MLKEM768_AESGCM_SHA256"
    assert shown["workspace"] == str(site.executor.workspace)
    assert shown["codex"]


def test_output_errors_and_status_come_back(site: Site) -> None:
    done = site.laptop.run(
        "exec", "-n", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=7
    )
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert site.laptop.run("exec", "-n", "box", "--", "kill -9 $$", check=None).returncode == 137


def test_what_is_not_there_gives_127(site: Site) -> None:
    done = site.laptop.run("exec", "-n", "box", "--", "no-such-command", check=127)
    assert b"no such command" in done.stderr
    site.laptop.run("exec", "box", "--", "no-such-command", check=127)
    site.laptop.run("exec", "-n", "-C", "/no/such/folder", "box", "--", "true", check=127)


def test_folder_and_variables_are_given_and_the_token_is_not(site: Site) -> None:
    done = site.laptop.run(
        "exec", "-n", "-C", "/tmp", "-e", "NAME=a value", "box", "--", "pwd; echo $NAME; env"
    )
    assert done.stdout.startswith(b"/tmp\na value\n")
    assert site.token.encode() not in done.stdout


def test_stdin_of_any_bytes_reaches_its_end(site: Site) -> None:
    content = os.urandom(3_000_001)
    done = site.laptop.run("exec", "box", "--", "sha256sum", input=content)
    assert done.stdout.split()[0].decode() == hashlib.sha256(content).hexdigest()
    assert site.laptop.run("exec", "box", "--", "cat", input=content).stdout == content
    assert site.laptop.run("exec", "box", "--", "cat").stdout == b""


def test_a_command_ends_before_its_stdin(site: Site) -> None:
    with running(site, "head", "-c", "3") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"abcdef")
        process.stdin.flush()
        # Stdin stays open: it is the command that ends.
        assert process.stdout.read() == b"abc"
        assert process.wait(COMMAND_TIMEOUT_S) == 0


def test_a_reader_that_waits_holds_up_nobody_and_loses_nothing(site: Site) -> None:
    # Less than waits on the device: beyond that the relay reads the executor no further.
    size = MAX_UNREAD_BYTES * 3 // 4
    with running(site, "head", "-c", str(size), "/dev/zero") as process:
        assert process.stdout is not None
        # Nobody has read a byte of it yet.
        assert site.laptop.run("exec", "-n", "box", "--", "echo", "hello").stdout == b"hello\n"
        assert zeros(process.stdout) == size
        assert process.wait(COMMAND_TIMEOUT_S) == 0


def test_more_than_any_buffer_holds_comes_through(site: Site) -> None:
    size = MAX_UNREAD_BYTES * 3
    with running(site, "head", "-c", str(size), "/dev/zero") as process:
        assert process.stdout is not None
        assert zeros(process.stdout) == size
        assert process.wait(COMMAND_TIMEOUT_S) == 0


def zeros(stream: IO[bytes]) -> int:
    """How many bytes come until the end; they are all zero."""
    count = 0
    while block := stream.read(1 << 20):
        assert not block.strip(b"\0")
        count += len(block)
    return count


def test_ctrl_c_reaches_the_command(site: Site) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    with running(site, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"caught\n"
        assert process.wait(COMMAND_TIMEOUT_S) == 5


def test_leaving_ends_what_runs_there(site: Site) -> None:
    with running(site, "sh", "-c", "echo $$; exec sleep 600") as process:
        assert process.stdout is not None
        there = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(COMMAND_TIMEOUT_S) == 137
    wait_until(lambda: not Path(f"/proc/{there}").exists(), "the command's end")


def test_a_session_outlives_its_connection(site: Site) -> None:
    with running(site, "sh", "-c", "echo before; read word; echo after $word; exit 4") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"before\n"
        site.tap.cut()
        process.stdin.write(b"the cut\n")
        process.stdin.close()
        assert process.stdout.readline() == b"after the cut\n"
        assert process.wait(COMMAND_TIMEOUT_S) == 4


def test_trees_are_copied_both_ways(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "program").write_bytes(b"#!/bin/sh\n")
    (source / "program").chmod(0o755)
    (source / "sub" / "it's a\nname").write_bytes(os.urandom(1_100_000))
    (source / "sub" / "empty").touch()
    (source / "link").symlink_to("nowhere")
    os.utime(source / "program", (10**9, 10**9))
    counts = {"files": 3, "directories": 2, "symlinks": 1}
    up = site.laptop.json("cp", str(source), "box:copies")
    down = site.laptop.json("cp", "box:copies", str(tmp_path / "back"))
    for summary in (up, down):
        assert {name: summary[name] for name in counts} == counts, summary
    for place in (site.executor.workspace / "copies", tmp_path / "back"):
        assert (place / "program").stat().st_mode & 0o777 == 0o755
        assert (place / "program").stat().st_mtime == 10**9
        assert os.readlink(place / "link") == "nowhere"
        assert (place / "sub" / "empty").read_bytes() == b""
        name = "sub/it's a\nname"
        assert (place / name).read_bytes() == (source / name).read_bytes()
        assert not list(place.rglob("*.codexctl-part"))


def test_a_copy_names_what_is_not_there(site: Site, tmp_path: Path) -> None:
    done = site.laptop.run("cp", "box:no-such-file", str(tmp_path), check=1)
    assert b"no-such-file does not exist there" in done.stderr
    (tmp_path / "file").write_text("x")
    done = site.laptop.run("cp", str(tmp_path / "file"), "box:no/such/place", check=1)
    assert b"there is no directory" in done.stderr
    # A folder stands in the file's way: told, and the folder stays.
    (site.executor.workspace / "taken" / "file").mkdir(parents=True)
    done = site.laptop.run("cp", str(tmp_path / "file"), "box:taken", check=1)
    assert b"not copied" in done.stderr
    assert (site.executor.workspace / "taken" / "file").is_dir()


def test_patterns_are_matched_there(site: Site, tmp_path: Path) -> None:
    for name in ("one.log", "two.log", "three.txt", ".hidden.log"):
        (site.executor.workspace / name).write_text(name)
    site.laptop.run("cp", "box:*.log", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.log", "two.log"]


class Terminal:
    """`codexctl shell box` on a pseudo-terminal of 100 by 30."""

    def __init__(self, site: Site) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "codexctl", "shell", "box"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=site.laptop.cwd,
            env=site.laptop.environment | {"TERM": "dumb"},
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + WITHIN_S
        while wanted not in self.seen:
            ready, _, _ = select.select([self.master], [], [], 0.1)
            if ready:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:
                    break
            assert time.monotonic() < deadline, self.seen
        assert wanted in self.seen, self.seen

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(COMMAND_TIMEOUT_S)
        os.close(self.master)


def test_a_shell_has_this_terminals_size_and_follows_it(site: Site) -> None:
    terminal = Terminal(site)
    try:
        terminal.type("echo size $(stty size)\n")
        terminal.read_until(b"size 30 100")
        terminal.resize(90, 20)
        # The new size arrives some time later: the shell itself waits for it.
        terminal.type('while [ "$(stty size)" != "20 90" ]; do sleep 0.05; done; echo re""sized\n')
        terminal.read_until(b"resized")
        terminal.type("exit 3\n")
        assert terminal.process.wait(COMMAND_TIMEOUT_S) == 3
    finally:
        terminal.close()


@pytest.mark.parametrize(
    "command", [("ps", "box"), ("forward", "box", "0:80"), ("exec", "-d", "box", "--", "true"),
                ("exec", "--network", "box", "--", "true")],
    ids=lambda words: " ".join(words),
)  # fmt: skip
def test_what_an_official_executor_does_not_have_is_refused(
    site: Site, command: tuple[str, ...]
) -> None:
    done = site.laptop.run(*command, check=2)
    assert b"official executor" in done.stderr


def test_doctor_looks_at_it(site: Site) -> None:
    done = site.laptop.run("doctor", "box", check=None)
    assert b"official executor, codex" in done.stdout
