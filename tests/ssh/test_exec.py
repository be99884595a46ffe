"""Commands over a real sshd: streams, status, signals, hosts that are not who they should be."""

from __future__ import annotations

import grp
import hashlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from codexctl.client.ssh import quote_argv, run_exec, status_of_signal
from codexctl.errors import AuthenticationFailed, ConnectionFailed
from tests.ssh.conftest import World
from tests.support.sshd import Sshd, make_key

RUN = """
import sys
from codexctl.client.ssh import run_exec, run_shell
from codexctl.client.ssh_config import find_alias
from codexctl.errors import CodexctlError
how, alias, *argv = sys.argv[1:]
try:
    target = find_alias(alias)
    status = run_shell(target, argv or None) if how == "shell" else run_exec(target, argv)
except CodexctlError as error:
    print(error, file=sys.stderr)
    status = error.exit_code
sys.exit(status)
"""
DEADLINE_S = 30


def command(how: str, alias: str, *argv: str) -> list[str]:
    return [sys.executable, "-c", RUN, how, alias, *argv]


def run(alias: str, *argv: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command("exec", alias, *argv), input=data, capture_output=True, timeout=DEADLINE_S
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_streams_and_status(world: World) -> None:
    done = run("web", "sh", "-c", "cat; echo err >&2; exit 7", data=b"in\xff\x00\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\xff\x00\n", b"err\n")


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)]
)
def test_statuses_are_those_of_the_command(world: World, script: str, status: int) -> None:
    assert run_exec(world.target(), ["sh", "-c", script], stdin=None) == status


def test_a_command_that_is_not_there_is_127(world: World) -> None:
    assert run("web", "no-such-command").returncode == 127


def test_signals_have_the_shells_numbers() -> None:
    assert status_of_signal("TERM") == 143
    assert status_of_signal("NONSENSE@example") == 255


def test_many_bytes_both_ways_are_the_same_bytes(world: World) -> None:
    data = os.urandom(12 << 20)
    done = run("web", "sh", "-c", "tee /dev/fd/2", data=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(done.stderr).digest() == hashlib.sha256(data).digest()
    assert done.returncode == 0


def test_stdin_from_a_file_and_stdout_to_a_file(world: World, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        status = run_exec(world.target(), ["cat"], stdin=source.fileno(), stdout=target.fileno())
    assert status == 0
    assert (tmp_path / "out").read_bytes() == data


def test_a_command_that_does_not_read_ends_while_input_is_open(world: World) -> None:
    read, write = os.pipe()
    try:
        assert run_exec(world.target(), ["true"], stdin=read) == 0
    finally:
        os.close(read)
        os.close(write)


def test_folder_and_variables(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a 'b"
    folder.mkdir()
    for what in ("pwd; echo $A", ["sh", "-c", "pwd; echo $A"]):
        run_exec(world.target(), what, stdin=None, cwd=str(folder), env={"A": "x y"})
        assert capfd.readouterr().out == f"{folder}\nx y\n"


NASTY = [
    "",
    "a b",
    "it's",
    "back\\slash\\",
    "hi!",
    "line\nend\n",
    "$HOME `id` $(id)",
    '"',
    "é\udcff",
    "*",
]


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "tcsh", "fish"])
@pytest.mark.parametrize("arguments", [["plain", "a b", "$HOME"], NASTY])
def test_arguments_reach_the_program_in_every_login_shell(
    shell: str, arguments: list[str], tmp_path: Path
) -> None:
    from shutil import which

    if which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    show = "import os,sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    line = quote_argv([sys.executable, "-c", show, *arguments])
    done = subprocess.run(
        [shell, "-c", os.fsencode(line)],
        capture_output=True,
        env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        check=False,
    )
    assert done.stdout == b"\0".join(map(os.fsencode, arguments)), done.stderr


def test_output_nobody_reads_ends_the_command(world: World) -> None:
    with subprocess.Popen(
        command("exec", "web", "yes"), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 141


def test_a_slow_reader_loses_nothing(world: World) -> None:
    with subprocess.Popen(
        command("exec", "web", "head", "-c", "9000000", "/dev/zero"),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        size = 0
        while data := process.stdout.read(1000):
            size += len(data)
        assert size == 9000000
        assert process.wait(DEADLINE_S) == 0


def test_ctrl_c_reaches_the_command_and_its_status_comes_back(world: World, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'echo caught; exit 9' INT; touch {ready}; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        command("exec", "web", "sh", "-c", script),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    wait_for(ready)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (9, b"caught\n")


def test_the_second_ctrl_c_leaves(world: World, tmp_path: Path) -> None:
    told = tmp_path / "told"
    end = tmp_path / "end"
    wait = f"until [ -e {end} ]; do sleep 0.05; done"
    script = f"trap 'touch {told}' INT; touch {tmp_path}/ready; {wait}; touch {tmp_path}/ended"
    process = subprocess.Popen(
        command("exec", "web", "sh", "-c", script),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    wait_for(told)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert b"may still be running" in err
    # It was: and it ends with the test.
    end.touch()
    wait_for(tmp_path / "ended")


def test_term_is_passed_on(world: World, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    script = (
        f"trap 'touch {ended}; exit 0' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    )
    process = subprocess.Popen(command("exec", "web", "sh", "-c", script), stdin=subprocess.DEVNULL)
    wait_for(tmp_path / "ready")
    process.terminate()
    assert process.wait(DEADLINE_S) == 143
    assert ended.exists()


def test_a_connection_that_is_cut_is_255(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sshd.start(tmp_path / "own") as server:
        world = World(tmp_path, server)
        world.add("web")
        world.trust(server)
        ready = tmp_path / "ready"
        cutter = threading.Thread(target=lambda: (wait_for(ready), server.cut()))
        cutter.start()
        with pytest.raises(ConnectionFailed, match="lost web") as caught:
            run_exec(world.target(), ["sh", "-c", f"touch {ready}; exec sleep 60"], stdin=None)
        cutter.join()
        assert caught.value.exit_code == 255


def test_a_host_that_does_not_answer_is_255(world: World) -> None:
    with pytest.raises(ConnectionFailed, match="cannot reach web") as caught:
        run_exec(world.target()._replace(port=1, proxy_jump=()), ["true"], stdin=None)
    assert caught.value.exit_code == 255
    assert "ssh -v web" in caught.value.hint


def test_an_unknown_host_key_is_refused_with_a_way_on(world: World) -> None:
    world.known_hosts.unlink()
    with pytest.raises(AuthenticationFailed, match="not known") as caught:
        run_exec(world.target(), ["true"], stdin=None)
    assert caught.value.exit_code == 255
    assert "ssh web true" in caught.value.hint


def test_no_known_hosts_file_at_all_does_not_mean_the_default_one(world: World) -> None:
    with pytest.raises(AuthenticationFailed, match="not known"):
        run_exec(world.target()._replace(known_hosts_files=()), ["true"], stdin=None)


def test_a_changed_host_key_names_file_and_line(world: World, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    line = " ".join(Path(f"{other}.pub").read_text().split()[:2])
    world.known_hosts.write_text(f"# mine\n[127.0.0.1]:{world.server.port} {line}\n")
    with pytest.raises(AuthenticationFailed, match="HAS CHANGED") as caught:
        run_exec(world.target(), ["true"], stdin=None)
    assert f"{world.known_hosts} line 2" in caught.value.message
    assert "ssh-keygen -f" in caught.value.hint


def test_a_revoked_host_key_is_refused(world: World) -> None:
    with world.known_hosts.open("a") as file:
        file.write(f"@revoked * {world.server.host_key}\n")
    with pytest.raises(AuthenticationFailed, match=r"revoked in .* line 2"):
        run_exec(world.target(), ["true"], stdin=None)


def test_strict_checking_cannot_be_turned_off_by_the_config(world: World) -> None:
    world.known_hosts.write_text("")
    world.add("loose", "StrictHostKeyChecking no")
    with pytest.raises(AuthenticationFailed, match="not known"):
        run_exec(world.target("loose"), ["true"], stdin=None)


def test_hashed_names_and_host_key_alias(world: World) -> None:
    world.known_hosts.write_text("")
    world.trust(world.server, "pinned.example")
    subprocess.run(
        ["ssh-keygen", "-H", "-f", str(world.known_hosts)], check=True, capture_output=True
    )
    world.add("aliased", "HostKeyAlias pinned.example")
    assert run_exec(world.target("aliased"), ["true"], stdin=None) == 0


def test_an_authority_vouches_for_a_host(world: World, tmp_path: Path) -> None:
    authority = make_key(tmp_path / "ca")
    folder = tmp_path / "certified"
    folder.mkdir()
    for name in ("host_key", "client_key"):
        make_key(folder / name)
    (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
    subprocess.run(
        ["ssh-keygen", "-q", "-s", authority, "-I", "x", "-h", "-n", "127.0.0.1", "host_key.pub"],
        cwd=folder,
        check=True,
    )
    with Sshd.start(folder, f"HostCertificate {folder}/host_key-cert.pub") as server:
        world.add("certified", server=server)
        with pytest.raises(AuthenticationFailed, match="not known"):
            run_exec(world.target("certified"), ["true"], stdin=None)
        with world.known_hosts.open("a") as file:
            file.write(f"@cert-authority * {Path(f'{authority}.pub').read_text()}")
        assert run_exec(world.target("certified"), ["true"], stdin=None) == 0


def test_a_key_that_is_not_accepted_is_255(world: World, tmp_path: Path) -> None:
    world.add("stranger", key=make_key(tmp_path / "stranger"))
    with pytest.raises(AuthenticationFailed, match="accepted no key of") as caught:
        run_exec(world.target("stranger"), ["true"], stdin=None)
    assert caught.value.exit_code == 255


def test_a_key_with_a_passphrase_comes_from_the_agent(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    world.server.authorize(Path(f"{key}.pub"))
    world.add("locked", f"IdentityAgent {tmp_path}/agent", "BatchMode yes", key=key)
    with pytest.raises(AuthenticationFailed, match="has a passphrase: run ssh-add"):
        run_exec(world.target("locked"), ["true"], stdin=None)
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL
    )
    try:
        wait_for(tmp_path / "agent")
        (tmp_path / "say").write_text("#!/bin/sh\necho open sesame\n")
        (tmp_path / "say").chmod(0o700)
        subprocess.run(
            ["ssh-add", "-q", str(key)],
            env={
                **os.environ,
                "SSH_AUTH_SOCK": str(tmp_path / "agent"),
                "SSH_ASKPASS": str(tmp_path / "say"),
                "SSH_ASKPASS_REQUIRE": "force",
            },
            check=True,
            stdin=subprocess.DEVNULL,
        )
        assert run_exec(world.target("locked"), ["true"], stdin=None) == 0
    finally:
        agent.terminate()
        agent.wait()


def test_through_a_second_host(world: World, tmp_path: Path) -> None:
    with Sshd.start(tmp_path / "jump") as jump:
        world.add("jump", server=jump)
        world.add("behind", "ProxyJump jump")
        with pytest.raises(AuthenticationFailed, match="host key of jump"):
            run_exec(world.target("behind"), ["true"], stdin=None)
        world.trust(jump)
        assert run_exec(world.target("behind"), ["true"], stdin=None) == 0
        log = (jump.folder / "sshd.log").read_text()
        assert "Accepted publickey" in log
        # The last hop is checked as strictly as the first.
        world.known_hosts.write_text("")
        world.trust(jump)
        with pytest.raises(AuthenticationFailed, match="host key of behind"):
            run_exec(world.target("behind"), ["true"], stdin=None)


def test_a_circle_of_hops_ends(world: World) -> None:
    world.add("around", "ProxyJump around")
    with pytest.raises(ConnectionFailed, match="more than"):
        run_exec(world.target("around"), ["true"], stdin=None)


def test_a_proxy_command_may_write_to_stderr(
    world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    proxy = f"{sys.executable} -c '{PROXY}' %h %p"
    world.add("proxied", f"ProxyCommand {proxy}")
    assert run_exec(world.target("proxied"), ["echo", "through"], stdin=None) == 0
    said = capfd.readouterr()
    assert said.out == "through\n"
    assert "proxy here" in said.err


PROXY = (
    'import socket,sys,threading,os; print("proxy here", file=sys.stderr, flush=True); '
    "s=socket.create_connection((sys.argv[1], int(sys.argv[2]))); "
    "threading.Thread(daemon=True, target=lambda: "
    '[s.sendall(d) for d in iter(lambda: os.read(0, 65536), b"")]).start(); '
    '[os.write(1, d) for d in iter(lambda: s.recv(65536), b"")]'
)


SHOW_SIZES = (
    "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH}); "
    'show = lambda: print("%d %d" % os.get_terminal_size()[::-1], flush=True); '
    "show(); [show() for _ in iter(lambda: signal.sigwaitinfo({signal.SIGWINCH}), None)]"
)


class Terminal:
    """A child on a pseudo-terminal of its own, and what it wrote."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(argv[0], argv)
        self.seen = b""

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.seen
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            assert data, self.seen
            self.seen += data
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def end(self) -> int:
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def sshd_gives_terminals() -> bool:
    """Without root sshd needs a devpts whose terminals belong to the group tty already."""
    ours, theirs = pty.openpty()
    try:
        return os.geteuid() == 0 or os.fstat(theirs).st_gid == grp.getgrnam("tty").gr_gid
    except KeyError:
        return True
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(not sshd_gives_terminals(), reason="devpts is mounted without gid=tty")
def test_a_shell_on_a_terminal(world: World) -> None:
    script = (
        'before=$(stty -g); "$@"; echo "status $?"; [ "$before" = "$(stty -g)" ] && echo restored'
    )
    terminal = Terminal(["/bin/sh", "-c", script, "sh", *command("shell", "web", "sh")])
    terminal.expect(b"#" if os.geteuid() == 0 else b"$")
    terminal.type(b"echo a$((1+1))b; test -t 0 && echo is-a-term''inal\n")
    terminal.expect(b"a2b")
    terminal.expect(b"is-a-terminal")
    # One program in the foreground from start to end: a loop in the shell would lose a Ctrl-C that
    # comes between the fork of one child and its exec.
    terminal.type(f"{sys.executable} -c '{SHOW_SIZES}'\n".encode())
    termios.tcsetwinsize(terminal.fd, (44, 90))
    terminal.expect(b"44 90")
    # Ctrl-C belongs to what runs there.
    terminal.type(b"\x03")
    terminal.type(b"echo $?\n")
    terminal.expect(b"130")
    terminal.type(b"exit 5\n")
    terminal.expect(b"status 5")
    terminal.expect(b"restored")
    assert terminal.end() == 0


def test_a_host_that_takes_long_is_named_on_the_terminal(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    go = tmp_path / "go"
    script = tmp_path / "proxy"
    wait = f"while [ ! -e {go} ]; do sleep 0.05; done"
    script.write_text(f"{wait}\nexec {sys.executable} -c '{PROXY}' \"$@\"\n")
    world.add("slow", f"ProxyCommand sh {script} %h %p")
    terminal = Terminal(command("exec", "slow", "echo", "here"))
    terminal.expect(b"connecting to slow")
    go.touch()
    terminal.expect(b"here")
    assert terminal.end() == 0


def test_a_passphrase_is_asked_for_on_the_terminal(world: World, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    world.server.authorize(Path(f"{key}.pub"))
    world.add("asking", key=key)
    terminal = Terminal(command("exec", "asking", "echo", "let in"))
    terminal.expect(f"Passphrase for {key}:".encode())
    terminal.type(b"wrong\n")
    terminal.expect(b"Passphrase for")
    terminal.type(b"open sesame\n")
    terminal.expect(b"let in")
    assert terminal.end() == 0


def test_ctrl_c_at_the_passphrase_is_130(world: World, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    world.server.authorize(Path(f"{key}.pub"))
    world.add("asking", key=key)
    terminal = Terminal(command("exec", "asking", "true"))
    terminal.expect(b"Passphrase for")
    terminal.type(b"\x03")
    assert terminal.end() == 130


@pytest.mark.skipif(not sshd_gives_terminals(), reason="devpts is mounted without gid=tty")
def test_a_shell_is_left_by_its_escape(world: World) -> None:
    terminal = Terminal(command("shell", "web", "sh"))
    terminal.expect(b"#" if os.geteuid() == 0 else b"$")
    terminal.type(b"\r~?")
    terminal.expect(b"end the session")
    terminal.type(b"\r~.")
    terminal.expect(b"ended by ~.")
    assert terminal.end() == 130
