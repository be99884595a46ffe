"""The pipeline end to end in processes of its own: one that works, and each way it goes wrong."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.provision.conftest import World
from tests.provision.terminal import typed

BARE = ("provision", "reference", "--name", "box", "--bare", "--yes", "--json")
STAGES = ["created", "address", "port", "host key", "login", "cloud-init"]


def ssh(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssh", "-F", str(world.config), *words], capture_output=True, text=True, timeout=30
    )


def test_a_workspace_from_nothing_to_nothing(machines: World) -> None:
    machines.config.write_text("Host other\n    HostName other.example\n")
    events = machines.events(*BARE, "--ttl", "8h")
    assert events[0]["event"] == "plan"
    assert events[0]["price_hour"] == "0.01"
    done = [event["stage"] for event in events if event.get("state") == "ok"]
    assert done == [*STAGES, "ready"]
    assert events[-1]["event"] == "ready"
    assert machines.config.read_text().splitlines()[0].startswith("Include ")
    assert ssh(machines, "box", "echo", "hello").stdout == "hello\n"
    listed = json.loads(machines.ok("workspace", "list", "--json"))
    assert [(w["name"], w["stage"], w["expired"]) for w in listed] == [("box", "ready", False)]
    # One call of each kind and the looks until it ran: no call is made that is not needed.
    calls = machines.calls()
    assert [call for call in calls if call != "describe"] == [
        "account",
        "plan",
        "create",
    ]
    machines.ok("workspace", "destroy", "box", "--yes")
    assert machines.things() == []
    assert machines.left_here() == []
    assert machines.config.read_text() == "Host other\n    HostName other.example\n"


def test_on_a_terminal_it_shows_the_price_asks_once_and_tells_each_stage(machines: World) -> None:
    command = ("provision", "reference", "--name", "box", "--bare", "--ttl", "8h")
    status, said = typed(machines, [("make it", "n")], *command)
    assert status == 130, said
    assert "0.01 USD an hour" in said
    assert "expires after 8h" in said
    assert machines.things() == []
    status, said = typed(machines, [("make it", "y")], *command)
    assert status == 0, said
    assert said.count("make it") == 1
    for stage in (*STAGES, "ready"):
        assert stage in said
    assert "ssh box" in said


def test_the_first_host_key_is_worthless_after_the_rotation(machines: World) -> None:
    machines.ok(*BARE)
    folder = next((machines.cloud / "machines").iterdir())
    workspace = next(p for p in (machines.home / "workspaces").iterdir() if p.is_dir())
    assert not (workspace / "first_host_key").exists()
    pinned = (workspace / "known_hosts").read_text().split()[1:]
    assert pinned == (folder / "ssh" / "ssh_host_ed25519_key.pub").read_text().split()[:2]


def test_setup_scripts_run_and_a_failing_one_is_named_with_its_output(machines: World) -> None:
    good, bad = machines.folder / "good.sh", machines.folder / "bad.sh"
    good.write_text("echo made >/home/made\n")
    bad.write_text("#!/bin/sh\necho no such mirror\nfalse\nexit 3\n")
    done = machines.run(*BARE, "--setup", str(good), "--setup", str(bad))
    assert done.returncode == 1
    error = json.loads(done.stderr.splitlines()[-1])
    assert "21-bad-sh" in error["message"]
    assert "no such mirror" in error["message"]
    assert "codexctl workspace logs box" in error["hint"]
    folder = next((machines.cloud / "machines").iterdir())
    assert (folder / "home" / "made").read_text() == "made\n"
    assert "no such mirror" in machines.ok("workspace", "logs", "box")
    machines.ok("workspace", "destroy", "box", "--yes")
    assert machines.things() == []


@pytest.mark.parametrize("fault", ["quota", "payment", "no-capacity", "read-only"])
def test_a_refused_order_leaves_nothing_and_frees_the_name(world: World, fault: str) -> None:
    world.faults(create=fault)
    done = world.run(*BARE)
    assert done.returncode == 1
    assert json.loads(done.stderr.splitlines()[-1])["hint"]
    assert world.things() == []
    assert world.left_here() == []
    assert json.loads(world.ok("workspace", "list", "--json")) == []


def test_a_lost_answer_makes_one_machine(machines: World) -> None:
    machines.faults(create="lost-answer")
    machines.ok(*BARE)
    assert len(machines.things()) == 2
    assert machines.calls().count("create") == 1


def test_a_defect_of_a_plugin_shows_nothing_of_its_text(world: World) -> None:
    world.faults(create="crash", describe="crash")
    done = world.run("provision", "reference", "--name", "box", "--bare", "--yes")
    assert done.returncode == 1
    assert "reference-token" not in done.stderr + done.stdout
    assert "RuntimeError" in done.stderr


def test_a_machine_that_fails_to_start_is_told_and_kept(world: World) -> None:
    world.faults(**{"boots-to": "failed"})
    done = world.run(*BARE)
    assert "the disk is on fire" in done.stderr
    assert len(world.things()) == 2
    listed = json.loads(world.ok("workspace", "list", "--json"))
    assert "the disk is on fire" in listed[0]["error"]
    world.ok("workspace", "destroy", "box", "--yes")
    assert world.things() == []


@pytest.mark.parametrize(
    ("options", "sentence", "hint"),
    [
        (["--size", "smal"], "there is no size smal", "the nearest are: small"),
        (["--size", "huge"], "size huge is not available here", "it exists in: south"),
        (["--region", "nrth"], "there is no region nrth", "north"),
        (["--max-price", "0.001"], "more than --max-price 0.001", "smaller"),
        (["--ttl", "soon"], "not a duration", "8h"),
        (["--user", "root"], "not root", "--user"),
        (["--name", "Big Box"], "cannot be a workspace's name", "hyphens"),
        (["--setup", "/nowhere.sh"], "cannot read the setup script", ""),
        (["--template", "/nowhere.j2"], "there is no template", ""),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(
    world: World, options: list[str], sentence: str, hint: str
) -> None:
    done = world.run("provision", "reference", "--bare", "--yes", "--json", *options)
    error = json.loads(done.stderr.splitlines()[-1])
    assert sentence in error["message"]
    assert hint in error["hint"]
    assert world.things() == []
    assert world.left_here() == []


def test_an_unknown_provider_names_the_nearest(world: World) -> None:
    done = world.run("provision", "referense")
    assert done.returncode == 2
    assert "there is no provider referense" in done.stderr
    assert "reference" in done.stderr


def test_an_alias_that_exists_elsewhere_is_refused_with_its_place(world: World) -> None:
    world.config.write_text("# mine\nHost nas box\n    HostName 10.0.0.1\n")
    done = world.run(*BARE)
    assert done.returncode == 2
    assert f"{world.config} line 2" in done.stderr
    assert world.things() == []


def test_a_name_in_use_and_two_at_once_are_refused(machines: World) -> None:
    machines.ok(*BARE)
    done = machines.run(*BARE)
    assert done.returncode == 2
    assert "there is a workspace box already" in done.stderr
    assert len(machines.things()) == 2


def test_of_two_provisions_at_once_under_one_name_one_is_refused(machines: World) -> None:
    runs = [machines.start(*BARE) for _ in range(2)]
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2], said
    assert len(machines.things()) == 2


@pytest.mark.parametrize("what", ["folder", "template"])
def test_what_ssh_could_not_be_told_is_found_before_the_order(world: World, what: str) -> None:
    if what == "folder":
        world.env["CODEXCTL_SSH_CONFIG"] = "/dev/null/config"
    else:
        (world.home / "templates").mkdir()
        (world.home / "templates" / "ssh_config.j2").write_text("Host {{ nonsense }}")
    done = world.run(*BARE)
    assert done.returncode in (1, 2)
    assert json.loads(done.stderr.splitlines()[-1])["hint"]
    assert "create" not in world.calls()
    assert world.left_here() == []
    assert json.loads(world.ok("workspace", "list", "--json")) == []


def test_user_data_beyond_the_limit_is_refused_before_the_order(world: World) -> None:
    big = world.folder / "big.sh"
    big.write_text("# " + "x" * 70_000)
    done = world.run(*BARE, "--setup", str(big))
    assert "this provider takes 65536" in done.stderr
    assert "create" not in world.calls()
    assert world.left_here() == []


def test_without_credentials_it_says_where_to_put_them(world: World) -> None:
    done = world.run(*BARE, REFERENCE_CLOUD="")
    assert "set REFERENCE_CLOUD" in done.stderr


def test_stop_start_and_extend(machines: World) -> None:
    machines.ok(*BARE, "--ttl", "1h")
    done = machines.run("workspace", "stop", "box")
    assert "saves all but a tenth" in done.stderr
    listed = json.loads(machines.ok("workspace", "list", "--json"))
    assert listed[0]["power"] == "stopped"
    machines.ok("workspace", "start", "box", "--json")
    machines.ok("workspace", "extend", "box", "9h")
    listed = json.loads(machines.ok("workspace", "list", "--json"))
    assert listed[0]["expires_at"] > time.time() + 8 * 3600
    tags = json.loads((machines.cloud / "things" / f"{machines.things()[1]}.json").read_text())
    assert tags["tags"]["codexctl-expires"] == str(listed[0]["expires_at"])


def test_an_expired_workspace_is_the_first_line_of_every_command(machines: World) -> None:
    machines.ok(*BARE, "--ttl", "1s")
    time.sleep(1.1)
    done = machines.run("hosts", "--json")
    assert "workspace box is past the ttl" in done.stderr.splitlines()[0]
    machines.ok("workspace", "reap", "--yes")
    assert machines.things() == []
    assert "past the ttl" not in machines.run("hosts", "--json").stderr


def test_somebody_elses_host_key_stops_it(machines: World) -> None:
    done = machines.run(*BARE, CODEXCTL_TEST_IGNORE_USER_DATA="1")
    assert done.returncode == 255
    error = json.loads(done.stderr.splitlines()[-1])
    assert error["error"] == "host-key"
    assert "ignored its user data" in error["hint"]
    machines.ok("workspace", "destroy", "box", "--yes")
    assert machines.things() == []
