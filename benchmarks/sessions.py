"""What a person waits for, against ssh on the same machine: cold commands, bulk bytes, keystrokes.

Relay, host and device are three processes of an installed codexctl; sshd is the system's. Each
figure is measured in turns, ours and theirs, in one run; the medians make the ratio.
"""

from __future__ import annotations

import json
import os
import pty
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.installed import installed
from benchmarks.row import Row
from tests.support.sshd import Sshd

BULK_BYTES = 512 << 20
BULK_ROUNDS = 5
COLD_ROUNDS = 21
START_ROUNDS = 25
KEYS = 200
KEY_ROUNDS = 4
TERMINALS = 5  # of each, one after another: on which core a process lands moves all its keys
SESSIONS = 200
ECHO = "echo it-is-0there | tr 0 -; exec cat"
CHACHA = ("-c", "chacha20-poly1305@openssh.com")


class Bench:
    """A running relay and host, a paired device, an sshd, all on loopback."""

    def __init__(self, folder: Path, bin_folder: Path, sshd: Sshd) -> None:
        self.folder = folder
        self.python = str(bin_folder / "python")
        self.codexctl = str(bin_folder / "codexctl")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(sshd.known_hosts_line())
        config = folder / "ssh_config"
        config.write_text(sshd.alias("there", known_hosts))
        self.ssh = ["ssh", "-F", str(config)]
        relay = self.start("relay", "relay", "serve", "--json", "--listen", "127.0.0.1:0")
        url = self.event(relay)["relay"]
        token = json.loads(self.run("relay", "relay", "token", "create", "--name", "b",
                                    "--expires", "1d", "--json"))["token"]  # fmt: skip
        self.host = self.start("host", "host", "serve", "--json", "--relay", url, "--name", "box",
                               CODEXCTL_RELAY_TOKEN=token)  # fmt: skip
        self.event(self.host)
        offer = json.loads(self.run("host", "pair", "--show", "--json"))
        self.run("device", "pair", offer["url"])
        self.run("device", "exec", "box", "--", "true")

    def environment(self, home: str, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CODEXCTL", "PYTHON"))}
        return {**kept, "CODEXCTL_HOME": str(self.folder / home), **more}

    def start(self, home: str, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [self.codexctl, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.workspace,
            env=self.environment(home, **more),
        )
        self.processes.append(process)
        return process

    def event(self, process: subprocess.Popen[bytes]) -> dict[str, str]:
        assert process.stdout is not None
        event: dict[str, str] = json.loads(process.stdout.readline())
        return event

    def run(self, home: str, *arguments: str) -> bytes:
        return subprocess.run(
            [self.codexctl, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=self.workspace,
            env=self.environment(home),
            check=True,
        ).stdout

    def ours(self, *command: str) -> list[str]:
        return [self.codexctl, "exec", "box", "--", *command]

    def theirs(self, *command: str) -> list[str]:
        return [*self.ssh, "there", *command]

    def timed(self, command: list[str], stdin: Path | None = None) -> float:
        """Seconds of one run; its output goes to /dev/null."""
        started = time.perf_counter()
        with open(stdin or os.devnull, "rb") as file:
            subprocess.run(
                command,
                stdin=file,
                stdout=subprocess.DEVNULL,
                env=self.environment("device"),
                check=True,
            )
        return time.perf_counter() - started

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait()


@contextmanager
def setup() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="codexctl-bench-") as name, installed() as bin_folder:
        folder = Path(name)
        with Sshd.start(folder / "sshd") as sshd:
            bench = Bench(folder, bin_folder, sshd)
            try:
                yield bench
            finally:
                bench.stop()


def alternate(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[float, float]:
    """Medians of both, measured in turns; one round of each is thrown away first."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def rows() -> list[Row]:
    with setup() as bench:
        return [*bulk(bench), *cold(bench), *keystroke(bench), *memory(bench), *starting(bench)]


def bulk(bench: Bench) -> list[Row]:
    out: list[Row] = []
    size = str(BULK_BYTES)
    ours, theirs = alternate(
        BULK_ROUNDS,
        lambda: bench.timed(bench.ours("head", "-c", size, "/dev/zero")),
        lambda: bench.timed([*bench.ssh, *CHACHA, "there", f"head -c {size} /dev/zero"]),
    )
    out += _bulk_rows("out", ours, theirs)
    source = bench.folder / "bulk"
    with source.open("wb") as file:
        for _ in range(BULK_BYTES >> 20):
            file.write(bytes(1 << 20))
    sink = "cat >/dev/null"
    ours, theirs = alternate(
        BULK_ROUNDS,
        lambda: bench.timed(bench.ours("sh", "-c", sink), source),
        lambda: bench.timed([*bench.ssh, *CHACHA, "there", sink], source),
    )
    source.unlink()
    return out + _bulk_rows("in", ours, theirs)


def _bulk_rows(way: str, ours: float, theirs: float) -> list[Row]:
    name = f"512 MiB {way} by exec through the relay"
    return [
        Row(f"{name} / ssh, ChaCha20-Poly1305, both as throughput", theirs / ours,
            ">= 0.9", ">= 1.2"),
        Row(name, BULK_BYTES / ours / 1e6, unit="MB/s"),
        Row(f"512 MiB {way} by ssh", BULK_BYTES / theirs / 1e6, unit="MB/s"),
    ]  # fmt: skip


def cold(bench: Bench) -> list[Row]:
    ours, theirs = alternate(
        COLD_ROUNDS,
        lambda: bench.timed(bench.ours("true")),
        lambda: bench.timed(bench.theirs("true")),
    )
    return [
        Row("cold exec of true / cold ssh, default key exchange", ours / theirs,
            "<= 0.6", "<= 0.3"),
        Row("cold exec of true", ours * 1000, unit="ms"),
        Row("cold ssh of true", theirs * 1000, unit="ms"),
    ]  # fmt: skip


class Typist:
    """A terminal session in which ECHO runs; the terminal there echoes each key."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, {**environment, "TERM": "xterm"})
        # Not an echo: until the connection stands, the terminal here echoes by itself.
        seen = b""
        while b"it-is--there" not in seen:
            seen += os.read(self.fd, 4096)
        time.sleep(0.2)  # so that what the start still does is not in the first key's time

    def keys(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            os.write(self.fd, b"x")
            while b"x" not in os.read(self.fd, 4096):
                pass
            times.append(time.perf_counter() - started)
        os.write(self.fd, b"\x15")
        time.sleep(0.05)  # the echo of the erased line, which the next round must not read
        return times

    def close(self) -> None:
        os.write(self.fd, b"\x03")
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def keystroke(bench: Bench) -> list[Row]:
    """With relay and host in one process, as `codexctl up` has them, and with two; and by ssh."""
    up = bench.start("up", "up", "--json", "--listen", "127.0.0.1:0", "--name", "both")
    bench.event(up)
    bench.run("device", "pair", bench.event(up)["url"])
    environment = bench.environment("device")
    commands = [
        [bench.codexctl, "exec", "-t", "both", "--", "sh", "-c", ECHO],
        [bench.codexctl, "exec", "-t", "box", "--", "sh", "-c", ECHO],
        [*bench.ssh, "-tt", "there", ECHO],
    ]
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(TERMINALS):
        typists = [Typist(command, environment) for command in commands]
        for _ in range(KEY_ROUNDS):
            for typist, found in zip(typists, times, strict=True):
                found.extend(typist.keys(KEYS))
        for typist in typists:
            typist.close()
    up_s, apart_s, ssh_s = (statistics.median(found) for found in times)
    return [
        Row("a keystroke's round trip in a shell of `up` / ssh", up_s / ssh_s, "<= 2.0", "<= 1.5"),
        Row("the same, relay and host apart / ssh", apart_s / ssh_s, "<= 2.0", "<= 1.5"),
        Row("a keystroke's round trip in a shell of `up`", up_s * 1e6, unit="us"),
        Row("the same, relay and host apart", apart_s * 1e6, unit="us"),
        Row("a keystroke's round trip by ssh", ssh_s * 1e6, unit="us"),
    ]


def memory(bench: Bench) -> list[Row]:
    from codexctl.client.ask import control
    from codexctl.client.connection import Connection
    from codexctl.client.store import HostStore
    from codexctl.paths import Home
    from codexctl.state.identity import load_identity

    home = Home(str(bench.folder / "device"))
    record = HostStore(home).find("box")
    assert record is not None
    key = load_identity(home)

    def connect() -> Connection:
        connection = Connection.open(record, key)
        control(connection, "ps")
        return connection

    # The first ones warm what is shared.
    connections = [connect() for _ in range(20)]
    before = _rss_kib(bench.host.pid)
    connections += [connect() for _ in range(SESSIONS)]
    each = (_rss_kib(bench.host.pid) - before) / SESSIONS
    for connection in connections:
        connection.close()
    return [Row("KiB an idle session, host", each, "<= 60", "<= 25", "KiB")]


def _rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        (line,) = [line for line in file if line.startswith("VmRSS")]
    return int(line.split()[1])


def starting(bench: Bench) -> list[Row]:
    nothing = [bench.python, "-c", "pass"]
    out = []
    for option, must, aim in (("--version", "<= 2.5", "<= 1.8"), ("--help", "<= 6", "<= 4.5")):
        ours, theirs = alternate(
            START_ROUNDS,
            lambda option=option: bench.timed([bench.codexctl, option]),  # type: ignore[misc]
            lambda: bench.timed(nothing),
        )
        out.append(Row(f"codexctl {option} / python -c pass", ours / theirs, must, aim))
    return out
