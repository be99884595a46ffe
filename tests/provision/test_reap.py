"""The journal against the clouds, both ways."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.cli.reap import service_unit
from codexctl.host.service import verify
from codexctl.paths import Home
from codexctl.provision.journal import Journal, Settings, Workspace
from codexctl.provision.lifecycle import idle_s
from codexctl.provision.model import FREE, Machine, Plan, Ref, Resource, Tags
from codexctl.provision.reap import TO_DESTROY, compare
from tests.provision.conftest import World

NOW = 1_000_000
BARE = ("provision", "reference", "--name", "box", "--bare", "--yes", "--json")


def workspace(number: int, **changes: object) -> Workspace:
    ref = Ref(f"{number:032x}", "north", "m")
    values: dict[str, object] = {
        "id": ref.workspace_id,
        "name": f"w{number}",
        "provider": "reference",
        "selection": {},
        "account_id": "a",
        "plan": Plan("north", "small", "linux", FREE),
        "settings": Settings(),
        "stage": "ready",
        "goal": "up",
        "undoing": "",
        "error": "",
        "machine": Machine(ref, "running", "192.0.2.1"),
        "created_at": 0,
        "expires_at": None,
        "power": "running",
        "power_since": 0,
        "ran_s": 0,
        "stood_s": 0,
        "ended_at": None,
        **changes,
    }
    return Workspace(**values)  # type: ignore[arg-type]


def resource(
    number: int, owner: str = "me", kind: str = "machine", expires: int | None = None
) -> Resource:
    tags = Tags(f"{number:032x}", owner, expires)
    return Resource(kind, f"{kind}-{number}", "x", "north", tags, bills=kind == "machine")


def kinds(workspaces: list[Workspace], listed: list[Resource], **more: object) -> dict[str, str]:
    values: dict[str, object] = {"busy": frozenset(), "ended": frozenset(), "now": NOW, **more}
    found = compare(workspaces, listed, provider="p", selection={}, owner="me", **values)  # type: ignore[arg-type]
    return {finding.workspace_id[-1:]: finding.kind for finding in found}


def test_each_difference_has_its_name() -> None:
    there = [
        workspace(1),
        workspace(2, expires_at=NOW),
        workspace(3, stage="ordered", machine=None),
        workspace(4, goal="gone", stage="leaving"),
        workspace(5),
        workspace(6, stage="configured"),
    ]
    listed = [resource(n) for n in (1, 2, 4, 6, 7)]
    listed += [resource(8, "you"), resource(9, "you", expires=NOW - 1)]
    assert kinds(there, listed) == {
        "2": "expired",
        "3": "half-made",
        "4": "leaving",
        "5": "vanished",
        "6": "half-made",
        "7": "unknown",
        "9": "foreign",
    }


def test_what_somebody_works_on_is_left_alone() -> None:
    busy = frozenset({f"{3:032x}", f"{7:032x}"})
    assert kinds([workspace(3, stage="ordered")], [resource(7)], busy=busy) == {}


def test_a_key_without_an_owner_is_known_by_its_machine_or_by_its_past() -> None:
    assert kinds([], [resource(1, "", "key"), resource(1)]) == {"1": "unknown"}
    assert kinds([], [resource(2, "", "key")]) == {}
    assert kinds([], [resource(2, "", "key")], ended=frozenset({f"{2:032x}"})) == {"2": "unknown"}


@given(
    known=st.sets(st.integers(0, 9)),
    listed=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["me", "you", ""]))),
)
@settings(max_examples=200, deadline=None)
def test_nothing_of_another_home_is_ever_destroyed_and_nothing_of_ours_missed(
    known: set[int], listed: list[tuple[int, str]]
) -> None:
    resources = [resource(number, owner) for number, owner in listed]
    found = kinds([workspace(n) for n in known], resources)
    ours = {n for n, owner in listed if owner == "me"}
    for number in ours - known:
        assert found[str(number)] == "unknown"
    for number in known - {n for n, _ in listed}:
        assert found[str(number)] == "vanished"
    for number, kind in found.items():
        if kind in TO_DESTROY:
            assert int(number) in ours


def test_a_lost_journal_leaves_machines_that_reap_finds_by_their_owner(machines: World) -> None:
    machines.ok(*BARE)
    kept = machines.folder / "kept.db"
    shutil.copy(machines.home / "provision.db", kept)
    machines.ok("workspace", "destroy", "box", "--yes", "--forget")
    assert len(machines.things()) == 2, "forgetting asks nobody"
    found = json.loads(machines.ok("workspace", "reap", "--dry-run", "--json"))
    assert [(f["kind"], f["bills"]) for f in found] == [("unknown", True)]
    machines.ok("workspace", "reap", "--yes")
    assert machines.things() == []


def test_a_machine_that_vanished_is_cleared_here(machines: World) -> None:
    machines.ok(*BARE)
    for thing in machines.things():
        (machines.cloud / "things" / f"{thing}.json").unlink()
    found = json.loads(machines.ok("workspace", "reap", "--dry-run", "--json"))
    assert [f["kind"] for f in found] == ["vanished"]
    machines.ok("workspace", "reap", "--yes")
    assert machines.left_here() == []


@pytest.mark.parametrize(
    ("fault", "value"), [("list", "page"), ("*", "server-error"), ("*", "wrong")]
)
def test_a_list_that_may_be_incomplete_is_an_error(machines: World, fault: str, value: str) -> None:
    machines.ok(*BARE)
    machines.faults(**{fault: value})
    done = machines.run("workspace", "reap", "--yes", "--json")
    assert done.returncode == 1
    assert json.loads(done.stderr.splitlines()[-1])["message"]
    assert len(machines.things()) == 2


def test_a_mark_without_an_id_is_told_and_left(machines: World) -> None:
    machines.ok(*BARE)
    path = machines.cloud / "things" / "odd.json"
    odd = {"id": "odd", "kind": "machine", "name": "odd", "region": "north", "bills": True}
    path.write_text(json.dumps({**odd, "tags": {"codexctl": "1"}, "created_at": 0}))
    done = machines.run("workspace", "reap", "--yes")
    assert done.returncode == 1
    assert "unreadable" in done.stdout
    assert path.exists()


def test_a_machine_of_another_journal_is_adopted_and_ended(machines: World) -> None:
    machines.ok(*BARE)
    listed = json.loads(machines.ok("workspace", "list", "--json"))
    machines.ok("workspace", "destroy", "box", "--yes", "--forget")
    machines.ok("workspace", "adopt", "reference", listed[0]["id"], "--name", "found")
    again = json.loads(machines.ok("workspace", "list", "--json"))
    assert [(w["name"], w["power"]) for w in again] == [("found", "running")]
    machines.ok("workspace", "destroy", "found", "--yes")
    assert machines.things() == []


def test_watching_ends_what_expires_while_it_watches(machines: World) -> None:
    machines.ok(*BARE, "--ttl", "3s")
    watch = machines.start("workspace", "reap", "--watch", "--every", "1s", "--json")
    try:
        assert json.loads(watch.stdout.readline()) == {"event": "reaped", "name": "box"}
        assert machines.things() == []
    finally:
        watch.terminate()
        watch.communicate()


def test_watching_stops_what_is_idle(machines: World) -> None:
    machines.ok(*BARE, "--idle-stop", "1s")
    watch = machines.start("workspace", "reap", "--watch", "--every", "1s", "--json")
    try:
        assert json.loads(watch.stdout.readline()) == {"event": "stopped", "name": "box"}
    finally:
        watch.terminate()
        watch.communicate()
    listed = json.loads(machines.ok("workspace", "list", "--json"))
    assert [w["power"] for w in listed] == ["stopped"]


def test_a_command_on_the_host_is_activity(machines: World) -> None:
    machines.ok(*BARE, "--idle-stop", "1h")
    with Journal(Home(str(machines.home))) as journal:
        workspace = journal.by_name("box")
    folder = next((machines.cloud / "machines").iterdir()) / "home" / "codex" / ".codexctl"
    folder.mkdir()
    assert idle_s(Home(str(machines.home)), workspace) > 60
    with subprocess.Popen(
        ["ssh", "-F", machines.config, "box", "echo up; sleep 60"], stdout=subprocess.PIPE
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        assert idle_s(Home(str(machines.home)), workspace) < 60
        session.terminate()
    (folder / "audit.jsonl").write_text("{}\n")
    assert idle_s(Home(str(machines.home)), workspace) < 60


def test_the_watch_is_installed_as_a_service_and_removed(world: World) -> None:
    done = json.loads(world.ok("workspace", "reap", "--install", "--every", "5m", "--json"))
    text = Path(done["path"]).read_text()
    assert '"workspace" "reap" "--watch" "--every" "5m"' in text
    assert f"CODEXCTL_HOME={world.home}" in text
    world.ok("workspace", "reap", "--uninstall")
    assert not Path(done["path"]).exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_accepts_the_watch(tmp_path: Path) -> None:
    unit = service_unit(Home(str(tmp_path / "a home")), ("lon1",), "5m")
    assert verify(unit) == ""
    broken = replace(unit, text=unit.text.replace(b"Restart=always", b"Restart=sometimes"))
    assert "restart" in verify(broken).lower()


def test_two_hundred_workspaces_are_listed_from_the_journal_alone(world: World) -> None:
    with Journal(Home(str(world.home))) as journal:
        for number in range(200):
            journal.begin(
                name=f"w{number}",
                provider="reference",
                selection={},
                account_id="a",
                plan=Plan("north", "small", "linux", FREE),
                settings=Settings(),
                expires_at=None,
                now=int(time.time()),
            )
    listed = json.loads(world.ok("workspace", "list", "--json"))
    assert len(listed) == 200
    assert world.calls() == []
