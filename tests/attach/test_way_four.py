"""The official terminal UI of a laptop on the threads of a host: over the relay, and over SSH."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect, unix_connect

from tests.attach.site import Site, site
from tests.attach.terminal import WAIT_S, TerminalProgram
from tests.support.codex import CODEX, make_codex_home, needs_codex, say, serving_model
from tests.support.sshd import Sshd

pytestmark = needs_codex
HELLO = {"id": 1, "method": "initialize", "params": {"clientInfo": {"name": "t", "version": "1"}}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("way4")) as made:
        yield made


def attach(place: Site, *arguments: str) -> TerminalProgram:
    command = [sys.executable, "-m", "codexctl", "attach", *arguments]
    return TerminalProgram(command, env=place.laptop.environment, cwd=place.laptop.cwd)


def tell(ui: TerminalProgram, text: str, answer: str) -> None:
    """Type a message, send it, and wait for what comes of it."""
    ui.type(text)
    ui.until(text)
    ui.until(answer, typing="\r")


def wait_for(look: Callable[[], Any]) -> Any:
    """What is found, once there is something."""
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def leave(ui: TerminalProgram) -> None:
    assert ui.wait(typing="\x03") == 0


def test_threads_are_shown_answered_and_shared(place: Site) -> None:
    place.world.start("say the words of before")
    with attach(place, "box") as first:
        first.until("Ask Codex to do anything")
        tell(first, "say forty-two bananas", "• forty-two bananas")
        rows = place.world.phone.json("thread", "list", "box")
        (mine,) = [row for row in rows if "bananas" in json.dumps(row)]
        assert mine["cwd"] == str(place.box.work)
        with attach(place, "box", "--", "resume", mine["id"]) as second:
            second.until("• forty-two bananas")
            tell(second, "say seventeen more", "• seventeen more")
            first.until("• seventeen more")
            leave(second)
        leave(first)


def test_an_approval_is_given_in_the_terminal(place: Site) -> None:
    target = place.box.work.parent / "made-outside"
    with attach(place, "box") as ui:
        ui.until("Ask Codex to do anything")
        tell(ui, f"ask touch {target}", "Would you like to run the following command")
        inbox = wait_for(lambda: place.world.phone.json("inbox"))
        assert str(target) in json.dumps(inbox)
        ui.until("• done", typing="y")
        wait_for(lambda: place.world.phone.json("inbox") == [])
        leave(ui)
    assert target.exists()


def test_a_cut_connection_does_not_end_it(place: Site) -> None:
    with attach(place, "box") as ui:
        ui.until("Ask Codex to do anything")
        place.tap.cut()
        tell(ui, "say after the cut", "• after the cut")
        leave(ui)


def test_the_token_alone_opens_the_printed_door(place: Site) -> None:
    with place.laptop.start("attach", "box", "--print", "--json") as door:
        ready = door.event("ready")
        (token,) = ready["env"].values()
        assert token not in json.dumps(ready["command"])
        for headers in ({}, {"Authorization": "Bearer x"}):
            with pytest.raises(InvalidStatus) as refused:
                connect(ready["remote"], additional_headers=headers, proxy=None)
            assert refused.value.response.status_code == 401
        shown = {"Authorization": f"Bearer {token}"}
        with pytest.raises(InvalidStatus) as refused:
            connect(ready["remote"], origin="https://example.org",  # type: ignore[arg-type]
                    additional_headers=shown, proxy=None)  # fmt: skip
        assert refused.value.response.status_code == 403
        for _ in range(2):
            with connect(ready["remote"], additional_headers=shown, compression=None,
                         proxy=None) as client:  # fmt: skip
                client.send(json.dumps(HELLO))
                assert json.loads(client.recv())["result"]["userAgent"]


def test_a_unix_socket(place: Site) -> None:
    path = place.laptop.cwd / "door"
    serve = ("attach", "box", "--print", "--json", "--socket", "door")
    for _ in range(2):  # the second finds what the first, killed, has left
        with place.laptop.start(*serve) as door:
            ready = door.event("ready")
            assert ready["remote"] == f"unix://{path}"
            assert ready["env"] == {}
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with unix_connect(str(path), compression=None) as client:
                client.send(json.dumps(HELLO))
                assert json.loads(client.recv())["id"] == 1
            place.laptop.run(*serve, check=2)
            door.kill()


def test_a_device_without_all_scopes_is_refused(place: Site, tmp_path: Path) -> None:
    from tests.support.programs import Machine

    offer = json.loads(
        place.box.machine.run("pair", "--show", "--json", "--scope", "view", "--scope", "exec")
        .stdout
    )  # fmt: skip
    other = Machine(tmp_path / "other")
    other.run("pair", offer["url"], "--name", "box")
    done = other.run("attach", "box", "--print", check=126)
    assert b"it lacks the scope approve" in done.stderr


def test_without_codex_here(place: Site, tmp_path: Path) -> None:
    environment = {**place.laptop.environment, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "codexctl", "attach", "box"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 127
    assert b"codex is not installed here" in done.stderr


def test_over_ssh_where_there_is_no_relay(place: Site, tmp_path: Path) -> None:
    assert CODEX is not None
    person, programs = tmp_path / "person", tmp_path / "programs"
    person.mkdir()
    programs.mkdir()
    (programs / "codex").symlink_to(CODEX)
    with (
        serving_model(lambda request: [say("an answer over ssh")]) as model,
        Sshd.start(tmp_path / "sshd", f"SetEnv HOME={person}") as server,
    ):
        make_codex_home(person / ".codex", model)
        path = f"export PATH='{programs}:{os.environ['PATH']}'\n"
        for name in (".profile", ".bash_profile", ".zprofile"):
            (person / name).write_text(path)
        known = tmp_path / "known_hosts"
        known.write_text(server.known_hosts_line())
        config = tmp_path / "config"
        config.write_text(server.alias("web", known))
        place.laptop.environment["CODEXCTL_SSH_CONFIG"] = str(config)
        with attach(place, "web") as ui:
            ui.until("Ask Codex to do anything")
            tell(ui, "hello there", "• an answer over ssh")
            leave(ui)
        (programs / "codex").unlink()
        place.laptop.environment["CODEXCTL_SSH_CONFIG"] = str(config)
        with attach(place, "web") as ui:
            ui.until("codex is not installed there")
            assert ui.wait() != 0
