"""`exec`, `shell`, `ps` and `forward` as a person uses them, through a real relay."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from codexctl.session.records import DEAD_S
from tests.e2e.conftest import Pair
from tests.support.programs import Machine

DEADLINE_S = 30.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition, bounded."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.02)


def popen(machine: Machine, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "codexctl", *arguments],
        cwd=machine.cwd,
        env=machine.environment,
        **options,
    )


def processes(box: Pair) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = box.device.json("ps", "box")
    return rows


def detach(box: Pair, *command: str) -> dict[str, str]:
    done = box.device.run("exec", "--detach", "--json", "box", "--", *command)
    started: dict[str, str] = json.loads(done.stdout)
    return started


def test_streams_and_status_are_kept_apart(box: Pair) -> None:
    done = box.device.run(
        "exec", "box", "--", "sh", "-c", "cat; echo err >&2; exit 7", input=b"in\n", check=7
    )
    assert (done.stdout, done.stderr) == (b"in\n", b"err\n")


def test_binary_input_and_output_survive(box: Pair) -> None:
    data = bytes(range(256)) * 40_000
    done = box.device.run("exec", "box", "--", "cat", input=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_an_argument_vector_reaches_the_program_unchanged(box: Pair) -> None:
    words = ["a b", "$HOME", "*", "", "é", "'", '"', "\\", "-x", "--"]
    done = box.device.run("exec", "box", "--", "printf", "[%s]", *words)
    assert done.stdout.decode() == "".join(f"[{word}]" for word in words)


def test_one_word_with_shell_characters_is_a_command_line(box: Pair) -> None:
    done = box.device.run("exec", "box", "--", "echo one; echo two | tr a-z A-Z")
    assert done.stdout == b"one\nTWO\n"


def test_statuses(box: Pair) -> None:
    (box.host.cwd / "plain").write_text("no program\n")
    for command, status in [
        (("true",), 0),
        (("sh", "-c", "exit 255"), 255),
        (("no-such-program",), 127),
        (("./plain",), 126),
        (("sh", "-c", "kill -KILL $$"), 128 + 9),
    ]:
        box.device.run("exec", "box", "--", *command, check=status)
    box.device.run("exec", "nobody", "--", "true", check=255)
    box.device.run("exec", "box", check=2)


def test_options_reach_the_host(box: Pair) -> None:
    (box.host.cwd / "sub").mkdir()
    options = ("-C", "sub", "-e", "LANG=C")
    done = box.device.run("exec", *options, "box", "--", "sh", "-c", "pwd; echo $LANG")
    assert done.stdout.decode().split() == [str(box.host.cwd / "sub"), "C"]
    done = box.device.run("exec", "--sandbox", "off", "box", "--", "true", check=126)
    assert b"hint:" in done.stderr


def test_the_network_is_there_only_when_it_is_granted(box: Pair) -> None:
    port = int(box.relay.rpartition(":")[2])
    look = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
    box.device.run("exec", "box", "--", "python3", "-c", look, check=1)
    box.device.run("exec", "box", "--network", "--", "python3", "-c", look)


def test_ctrl_c_reaches_the_remote_command(box: Pair) -> None:
    process = popen(
        box.device, "exec", "box", "--", "sh", "-c",
        "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(DEADLINE_S) == 5


def test_a_second_ctrl_c_leaves_a_deaf_command_behind(box: Pair) -> None:
    process = popen(
        box.device, "exec", "box", "--", "sh", "-c",
        "trap '' INT HUP TERM; echo ready; while :; do sleep 0.05; done",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.returncode == 130


def test_a_reader_that_leaves_ends_the_command_as_sigpipe_would(box: Pair) -> None:
    process = popen(box.device, "exec", "box", "--", "yes", stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 128 + signal.SIGPIPE
    until(lambda: all(p["state"] != "running" for p in processes(box)), "the end of yes")


def test_a_full_disk_under_stdout_is_said(box: Pair) -> None:
    with open("/dev/full", "wb") as full:
        process = popen(box.device, "exec", "box", "--", "yes", stdout=full, stderr=subprocess.PIPE)
        with process:
            assert process.stderr is not None
            told = process.stderr.read()
            assert process.wait(DEADLINE_S) == 1
    assert b"cannot write standard output: No space left" in told
    assert b"hint: free some space" in told


def test_a_reader_that_stops_stalls_the_command_and_nothing_grows(box: Pair) -> None:
    process = popen(box.device, "exec", "box", "--", "yes", stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.read(1 << 20)
        # While nobody reads, the same session's host serves others, and memory stays bounded.
        for _ in range(3):
            assert box.device.run("exec", "box", "--", "echo", "x").stdout == b"x\n"
        for pid in (process.pid, box.up.process.pid):
            with open(f"/proc/{pid}/status") as file:
                (line,) = [line for line in file if line.startswith("VmRSS")]
            assert int(line.split()[1]) < 200_000
        process.kill()


def test_a_detached_command_runs_on_and_gives_what_was_missed(box: Pair) -> None:
    script = "echo first; while [ ! -e go ]; do sleep 0.05; done; echo last; exit 4"
    started = detach(box, "sh", "-c", script)
    assert started["host"] == "box"
    (row,) = processes(box)
    assert (row["process"], row["state"]) == (started["process"], "running")
    attached = popen(
        box.device, "ps", "box", "--attach", started["process"],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with attached:
        assert attached.stdout is not None
        assert attached.stdout.readline() == b"first\n"
        (box.host.cwd / "go").touch()
        assert attached.stdout.read() == b"last\n"
        assert attached.wait(DEADLINE_S) == 4


def test_a_device_that_slept_goes_on_where_it_was(box: Pair) -> None:
    """A laptop's lid: the host gives the path up meanwhile, and the device has not noticed."""
    script = "echo first; while [ ! -e go ]; do sleep 0.05; done; echo last; read x; echo got $x"
    process = popen(
        box.device, "exec", "box", "--", "sh", "-c", script,
        stdout=subprocess.PIPE, stdin=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"first\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(DEAD_S + 2)
        (box.host.cwd / "go").touch()
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == b"last\n"
        process.stdin.write(b"it\n")
        process.stdin.close()
        assert process.stdout.read() == b"got it\n"
        assert process.wait(DEADLINE_S) == 0


def test_output_beyond_the_ring_is_dropped_and_said(box: Pair) -> None:
    size = 20 << 20
    script = f"head -c {size} /dev/zero; echo end"
    started = detach(box, "sh", "-c", script)["process"]
    until(lambda: processes(box)[0]["state"] == "exited", "the end of the writer")
    done = box.device.run("ps", "box", "--attach", started)
    assert done.stdout.endswith(b"end\n")
    assert len(done.stdout) < size
    dropped = int(done.stderr.split()[1])
    assert dropped + len(done.stdout) == size + len(b"end\n")


def test_ps_can_end_a_process(box: Pair) -> None:
    started = detach(box, "sleep", "600")["process"]
    box.device.run("ps", "box", "--kill", started)
    until(lambda: processes(box)[0]["state"] == "exited", "the end of sleep")


class TerminalUser:
    """A codexctl command in a terminal of its own, and somebody who types."""

    def __init__(self, machine: Machine, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(machine.cwd)
            environment = {**machine.environment, "TERM": "xterm"}
            command = [sys.executable, "-m", "codexctl", *arguments]
            os.execve(sys.executable, command, environment)
        self.seen = b""

    def expect(self, text: bytes) -> None:
        end = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} never came: {self.seen!r}"
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    raise AssertionError(f"ended before {text!r}: {self.seen!r}") from None
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def status(self) -> int:
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"did not end: {self.seen!r}")


def test_a_shell_has_a_terminal_that_follows_this_ones_size(box: Pair) -> None:
    import fcntl
    import struct
    import termios

    user = TerminalUser(box.device, "shell", "box")
    user.type(b"PS1='ready'; stty size; test -t 0 && echo is-a-$((1+1))-tty\n")
    user.expect(b"is-a-2-tty")
    fcntl.ioctl(user.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    user.type(b"while [ \"$(stty size)\" != '33 99' ]; do sleep 0.05; done; echo re$((1+1))sized\n")
    user.expect(b"re2sized")
    user.type(b"exit 6\n")
    assert user.status() == 6


def test_a_shell_can_be_left_and_taken_up_again(box: Pair) -> None:
    user = TerminalUser(box.device, "shell", "box")
    user.type(b"X=kept; echo in-$((1+1))\n")
    user.expect(b"in-2")
    user.type(b"\r~d")
    user.expect(b"detached")
    assert user.status() == 0
    (row,) = [p for p in processes(box) if p["state"] == "running"]
    again = TerminalUser(box.device, "ps", "box", "--attach", str(row["process"]))
    again.type(b"echo $X-$((2+2))\n")
    again.expect(b"kept-4")
    again.type(b"exit\n")
    assert again.status() == 0


def test_a_signal_here_ends_a_shell_that_would_ignore_it(box: Pair) -> None:
    user = TerminalUser(box.device, "shell", "box")
    user.type(b"echo in-$((1+1))\n")
    user.expect(b"in-2")
    os.kill(user.pid, signal.SIGTERM)
    assert user.status() == 128 + signal.SIGTERM
    until(lambda: all(p["state"] != "running" for p in processes(box)), "the end of the shell")


def test_tilde_dot_ends_a_shell_from_here(box: Pair) -> None:
    user = TerminalUser(box.device, "shell", "box")
    user.type(b"echo in-$((1+1))\n")
    user.expect(b"in-2")
    user.type(b"\r~.")
    assert user.status() == 130


def test_forward_carries_connections_both_ways_and_closes_them(box: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def echo() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    while data := peer.recv(65536):
                        peer.sendall(data)

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        with box.device.start("forward", "box", f"0:{port}", "--json") as forward:
            listen = forward.event("ready")["listen"].rpartition(":")
            data = os.urandom(3 << 20)
            with socket.create_connection((listen[0], int(listen[2])), 10) as sock:
                sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(1)))
                sender.start()
                got = bytearray()
                while chunk := sock.recv(65536):
                    got += chunk
                sender.join()
            assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_S)
    kinds = {(r["kind"], r["outcome"]) for r in box.host.json("audit", "list")}
    assert ("forward", "connected") in kinds


def test_several_hosts_at_once_prefix_their_lines_and_give_the_worst_status(box: Pair) -> None:
    box.device.run("pair", box.offer()["url"], "--name", "b1")
    second = Machine(box.folder / "second")
    with second.start("up", "--json", "--listen", "127.0.0.1:0", "--name", "b2") as up:
        box.device.run("pair", up.event("pairing")["url"])
        (second.cwd / "bad").touch()
        done = box.device.run("exec", "b1,b2", "--", "sh", "-c", "echo hi; test ! -e bad", check=1)
    lines = sorted(done.stdout.decode().splitlines())
    assert [line.split()[-1] for line in lines] == ["hi", "hi"]
    assert lines[0].startswith("b1")
    assert lines[1].startswith("b2")


@pytest.mark.parametrize("what", ["key", "home"])
def test_bad_state_is_refused_with_one_sentence(box: Pair, what: str) -> None:
    if what == "key":
        (box.device.home / "identity.key").chmod(0o644)
        done = box.device.run("exec", "box", "--", "true", check=1)
        assert b"can be read by others" in done.stderr
        assert b"chmod 600" in done.stderr
    else:
        (box.device.home / "device.db").write_bytes(b"not a database, but long enough to be read")
        done = box.device.run("exec", "box", "--", "true", check=1)
        assert b"hint:" in done.stderr
    assert b"Traceback" not in done.stderr
