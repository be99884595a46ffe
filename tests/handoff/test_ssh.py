"""A thread moves to a machine that has no relay, over a real sshd, and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handoff.trees import state, write
from tests.handoff.world import Host, World, until
from tests.support.codex import needs_codex, say, serving_model
from tests.support.sshd import Sshd

pytestmark = needs_codex


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("ssh")
    with serving_model([[say("yes")]]) as model:
        made = World(folder, model)
        away = Host(folder / "away", "away", model)
        write(
            away.person.parent / "bin", "codexctl",
            f'#!/bin/sh\nexec "{sys.executable}" -m codexctl "$@"\n', 0o755,
        )  # fmt: skip
        # What a login there finds: a home of its own, and a profile that prints something.
        with (away.person / ".profile").open("a") as profile:
            profile.write("echo welcome\n")
        enter = write(
            folder, "enter",
            "#!/bin/sh\n"
            f"export HOME={away.person} SHELL=/bin/sh CODEX_HOME={away.codex_home} "
            f"CODEXCTL_HOME={away.machine.home}\ncd; exec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
            0o755,
        )  # fmt: skip
        try:
            with Sshd.start(folder / "sshd", f"ForceCommand {enter}") as server:
                known = folder / "known_hosts"
                known.write_text(server.known_hosts_line())
                config = folder / "config"
                config.write_text(server.alias("away", known))
                made.device.environment["CODEXCTL_SSH_CONFIG"] = str(config)
                made.hosts["away"] = away
                yield made
        finally:
            away.kill_codex()
            del made.hosts["away"]
            made.close()


def test_to_a_machine_over_ssh_and_back(world: World) -> None:
    thread = world.thread("one", "app", "hello from one")
    before = state(world.hosts["one"].workspace / "app")
    plan = world.device.json("thread", "handoff", thread, "--to", "away", "--dry-run")
    assert plan["obstacles"] == []
    done = world.device.json("thread", "handoff", thread, "--to", "ssh:away")
    assert (done["moved"], done["host"]) == (True, "away")
    there = Path(done["folder"])
    assert there.is_relative_to(world.hosts["away"].person)
    assert state(there) == before
    (shown,) = world.ask("one", "thread.show", thread=thread, limit=0)
    assert shown["moved_to"] == "away"

    write(there, "more", "from there\n")
    back = world.device.json("thread", "handoff", f"ssh:away:{thread}", "--to", "two")
    assert back["host"] == "two"
    assert state(Path(back["folder"])) == state(there)
    asked = len(world.model.requests)
    world.ask("two", "thread.send", thread=thread, text="go on", key="k")
    until(lambda: len(world.model.requests) > asked, "the model to be asked")
    assert "hello from one" in json.dumps(world.model.requests[-1])


def test_a_machine_without_codexctl_says_so(world: World) -> None:
    thread = world.thread("one", "stays", "hello")
    (world.hosts["away"].person.parent / "bin" / "codexctl").rename(
        world.hosts["away"].person.parent / "bin" / "gone"
    )
    failed = world.device.run("thread", "handoff", thread, "--to", "ssh:away", check=255)
    assert b"codexctl does not answer on away" in failed.stderr
    assert world.rows("one", thread) == []
