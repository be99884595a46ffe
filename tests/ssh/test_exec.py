"""Commands over a real sshd: streams, status, signals, hosts that are not who they should be."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
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
