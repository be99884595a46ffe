"""A host with the real codex, a scripted model and two paired devices, as real processes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from codexctl.agent.threads import NEWEST
from codexctl.errors import CodexctlError
from tests.agent.model import FEATURES, script
from tests.support.codex import CODEX, Model, needs_codex, serving_model
from tests.support.threads import ThreadDevice, ThreadHost

pytestmark = needs_codex
REQUESTED, ENDED, DONE = "codexctl/approval/requested", "codexctl/approval/ended", "turn/completed"


class World:
    def __init__(self, folder: Path, model: Model) -> None:
        self.model = model
        self.host = ThreadHost(folder, model, config=FEATURES)
        self.laptop = self.host.device("laptop")
        self.phone = self.host.device("phone")
        self.work = self.host.machine.cwd

    def start(self, prompt: str, **params: Any) -> str:
        return str(self.laptop.one("thread.start", prompt=prompt, **params)["id"])

    def asked(self, prompt: str, **params: Any) -> tuple[str, dict[str, Any]]:
        """Start a thread that asks; its id and the pending approval."""
        thread = self.start(prompt, **params)
        event = self.phone.events(REQUESTED, thread=thread)[-1]
        approval: dict[str, Any] = event["params"]["approval"]
        return thread, approval

    def cursor(self) -> int:
        """Where the events are now."""
        return int(self.laptop.one("thread.watch", cursor=NEWEST)["cursor"])

    def said(self, thread: str, text: str, **params: Any) -> list[dict[str, Any]]:
        """Send a message; the events up to the end of its turn."""
        cursor = self.cursor()
        self.laptop.one("thread.send", thread=thread, text=text, **params)
        return self.laptop.events(DONE, thread=thread, cursor=cursor)

    def alter(self, statement: str) -> None:
        """Change agent.db behind the host's back."""
        with closing(sqlite3.connect(self.host.machine.home / "agent.db")) as db:
            db.execute(statement)
            db.commit()

    def answer(self, approval: dict[str, Any], decision: str, **more: Any) -> dict[str, Any]:
        asked = {"id": approval["id"], "hash": approval["hash"], "decision": decision}
        return self.phone.one("approval.answer", **asked, **more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_model(script) as model:
        made = World(tmp_path_factory.mktemp("host"), model)
        try:
            yield made
        finally:
            made.host.close()


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def repository(folder: Path) -> Path:
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "a.txt").write_text("one\n")
    git(folder, "add", "a.txt")
    git(folder, "commit", "-q", "-m", "first")
    return folder


# --- threads ---


def test_one_device_starts_another_watches_and_approves(world: World) -> None:
    thread, approval = world.asked("ask touch approved.txt")
    assert approval["kind"] == "command"
    assert "touch approved.txt" in approval["command"]
    assert (approval["cwd"], approval["reason"]) == (str(world.work), "must")
    assert world.laptop.one("thread.show", thread=thread, limit=0)["status"] == "waiting"
    ended = world.answer(approval, "accept")
    assert (ended["state"], ended["decided_by"]) == ("answered", "phone")
    world.laptop.events(DONE, thread=thread)
    assert (world.work / "approved.txt").exists()
    with pytest.raises(CodexctlError, match="phone has decided accept at"):
        world.laptop.one(
            "approval.answer", id=approval["id"], hash=approval["hash"], decision="decline"
        )
    record = world.host.machine.json("audit", "list", "--kind", "approval")[-1]
    assert (record["who"], record["outcome"]) == ("phone", "accept")
    assert record["shown"] == approval["hash"]


def test_a_device_that_was_away_gets_what_it_missed_once(world: World) -> None:
    thread = world.start("hello there")
    live = [e for e in world.laptop.events(DONE, thread=thread) if e["at"]]
    middle = live[len(live) // 2]["cursor"]
    replayed = world.phone.call("thread.watch", thread=thread, cursor=middle)
    assert replayed[-1]["method"] == "codexctl/events/replayed"
    assert [e for e in replayed if e["at"] and e["cursor"] <= live[-1]["cursor"]] == [
        e for e in live if e["cursor"] > middle
    ]
    cursors = [event["cursor"] for event in live]
    assert cursors == sorted(set(cursors))
    assert all(event["thread"] == thread for event in live)
    (now,) = world.phone.call("thread.watch", thread=thread, cursor=NEWEST)
    assert now["cursor"] >= live[-1]["cursor"]


def test_a_key_makes_a_message_come_once(world: World) -> None:
    thread = world.start("first", key="start-1")
    assert world.laptop.one("thread.start", prompt="first", key="start-1")["id"] == thread
    world.laptop.events(DONE, thread=thread)
    world.said(thread, "only once", key="k1")
    assert world.laptop.one("thread.send", thread=thread, text="only once", key="k1")["repeated"]
    assert json.dumps(world.model.requests[-1]["input"]).count("only once") == 1
    # As if the daemon had been killed between telling the app-server and keeping the result.
    world.alter("UPDATE keys SET result = NULL WHERE key = 'k1'")
    asked = len(world.model.requests)
    assert world.laptop.one("thread.send", thread=thread, text="only once", key="k1")["repeated"]
    assert len(world.model.requests) == asked
    with pytest.raises(CodexctlError, match="was used for"):
        world.laptop.one("thread.start", prompt="x", key="k1")


def test_a_long_prompt_comes_as_input(world: World) -> None:
    text = "long " + "x" * 300_000
    thread = str(world.laptop.one("thread.start", input=text.encode())["id"])
    world.laptop.events(DONE, thread=thread)
    assert "x" * 300_000 in json.dumps(world.model.requests[-1]["input"])


def test_a_running_turn_is_steered_and_interrupted(world: World) -> None:
    thread, approval = world.asked("ask touch never.txt")
    assert world.laptop.one("thread.steer", thread=thread, text="mind the gap")["delivered"]
    assert world.laptop.one("thread.interrupt", thread=thread)["interrupted"]
    ended = world.laptop.events(ENDED, thread=thread)[-1]["params"]["approval"]
    assert (ended["state"], ended["id"]) == ("withdrawn", approval["id"])
    with pytest.raises(CodexctlError, match="is withdrawn since"):
        world.answer(approval, "accept")
    assert not (world.work / "never.txt").exists()
    world.laptop.events(DONE, thread=thread)
    with pytest.raises(CodexctlError, match="no turn runs"):
        world.laptop.one("thread.steer", thread=thread, text="too late")


def test_threads_are_named_forked_given_goals_and_archived(world: World) -> None:
    thread = world.start("a long story", name="story")
    world.laptop.events(DONE, thread=thread)
    assert world.phone.one("thread.show", thread="story", limit=0)["id"] == thread
    world.laptop.one("thread.rename", thread=thread, name="novel")
    goal = world.laptop.one("thread.goal", thread="novel", objective="an end", state="paused")
    assert goal["goal"]["objective"] == "an end"
    assert world.laptop.one("thread.goal", thread="novel", clear=True)["goal"] is None
    fork = world.laptop.one("thread.fork", thread="novel", name="sequel")
    assert fork["id"] != thread
    lines = world.laptop.call("thread.export", thread=thread)
    assert lines[0]["thread"]["name"] == "novel"
    assert "a long story" in json.dumps(lines[1])
    assert world.laptop.one("thread.archive", thread=thread)["status"] == "archived"
    assert thread not in [t["id"] for t in world.laptop.call("thread.list")]
    assert thread in [t["id"] for t in world.laptop.call("thread.list", archived=True)]
    with pytest.raises(CodexctlError, match="is archived") as caught:
        world.laptop.call("thread.send", thread=thread, text="more")
    assert caught.value.as_json()["error"] == "archived-thread"
    assert world.laptop.one("thread.unarchive", thread=thread)["status"] == "idle"
    world.said(thread, "go on")


def test_a_thread_of_the_official_cli_appears_and_goes_on(world: World) -> None:
    assert CODEX is not None
    environment = {**world.host.machine.environment}
    subprocess.run(
        [CODEX, "exec", "--skip-git-repo-check", "typed on the host"],
        cwd=world.work, env=environment, check=True, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    found = [t for t in world.laptop.call("thread.list") if t["preview"] == "typed on the host"]
    assert len(found) == 1
    thread = found[0]["id"]
    world.said(thread, "from afar")
    conversation = json.dumps(world.model.requests[-1]["input"])
    assert "typed on the host" in conversation
    assert "from afar" in conversation


def test_a_thread_outside_the_workspace_is_only_shown(world: World, tmp_path: Path) -> None:
    assert CODEX is not None
    repository(tmp_path / "private")
    subprocess.run(
        [CODEX, "exec", "typed elsewhere"],
        cwd=tmp_path / "private", env={**world.host.machine.environment}, check=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    (found,) = [t for t in world.laptop.call("thread.list") if t["preview"] == "typed elsewhere"]
    assert world.laptop.call("thread.show", thread=found["id"])
    with pytest.raises(CodexctlError, match="outside the workspace"):
        world.laptop.call("thread.send", thread=found["id"], text="go on")
    with pytest.raises(CodexctlError, match="outside the workspace"):
        world.laptop.bytes("thread.diff", thread=found["id"])


def test_a_review_is_the_official_one(world: World) -> None:
    repository(world.work / "reviewed")
    (world.work / "reviewed" / "a.txt").write_text("two\n")
    thread = world.start("hello", cwd="reviewed")
    world.laptop.events(DONE, thread=thread)
    cursor = world.cursor()
    review = world.laptop.one("thread.review", thread=thread)
    events = world.laptop.events(DONE, thread=review["review_thread"], cursor=cursor)
    items = [event["params"]["item"]["type"] for event in events if "item" in event["params"]]
    assert "enteredReviewMode" in items


# --- approvals of every kind ---


def test_a_change_of_files_is_shown_before_it_is_made(world: World) -> None:
    thread, approval = world.asked("patch ../outside.txt")
    assert approval["kind"] == "file-change"
    assert "outside.txt" in approval["patch"]
    assert "new" in approval["patch"]
    world.answer(approval, "decline")
    world.laptop.events(DONE, thread=thread)
    assert not (world.work.parent / "outside.txt").exists()


def test_questions_permissions_and_forms_are_answered(world: World) -> None:
    thread, approval = world.asked("question please")
    assert approval["questions"][0]["id"] == "color"
    world.answer(approval, "answer", answers={"color": "blue"})
    world.laptop.events(DONE, thread=thread)
    assert "blue" in json.dumps(world.model.requests[-1]["input"][-1])

    thread, approval = world.asked("permissions please")
    assert approval["permissions"]["network"] == {"enabled": True}
    world.answer(approval, "acceptForSession")
    world.laptop.events(DONE, thread=thread)
    assert "session" in json.dumps(world.model.requests[-1]["input"][-1])

    thread, approval = world.asked("greet me")
    assert approval["elicitation"]["tool_name"] == "greet"
    cursor = world.cursor()
    world.answer(approval, "accept", content={})
    asked = world.phone.events(REQUESTED, thread=thread, cursor=cursor)[-1]["params"]["approval"]
    assert asked["elicitation"]["message"] == "Who are you?"
    with pytest.raises(CodexctlError, match="the form needs name"):
        world.answer(asked, "accept", content={})
    world.answer(asked, "accept", content={"name": "Ada"})
    world.laptop.events(DONE, thread=thread)
    assert "Ada" in json.dumps(world.model.requests[-1]["input"][-1])


def test_what_is_allowed_for_good_is_not_asked_again(world: World) -> None:
    thread, approval = world.asked("ask touch again.txt")
    world.answer(approval, "acceptWithExecpolicyAmendment")
    world.laptop.events(DONE, thread=thread)
    later = world.said(thread, "ask touch again.txt")
    assert REQUESTED not in [event["method"] for event in later]


def test_two_who_answer_at_once_get_one_decision(world: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    thread, approval = world.asked("ask touch race.txt")

    def decide(device: ThreadDevice, decision: str) -> str:
        try:
            answer = device.one(
                "approval.answer", id=approval["id"], hash=approval["hash"], decision=decision
            )
        except CodexctlError as error:
            return str(error)
        return str(answer["decision"])

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(decide, world.laptop, "accept")
        second = pool.submit(decide, world.phone, "cancel")
        results = [first.result(), second.result()]
    world.laptop.events(DONE, thread=thread)
    decided = [r for r in results if r in ("accept", "cancel")]
    assert len(decided) == 1
    assert any(f"has decided {decided[0]} at" in r for r in results)
    assert (world.work / "race.txt").exists() == (decided == ["accept"])


# --- who may what ---


def test_scopes_decide_who_may_look_start_and_answer(world: World) -> None:
    viewer = world.host.device("viewer", "view")
    thread, approval = world.asked("ask touch scoped.txt")
    assert viewer.one("thread.show", thread=thread, limit=0)["id"] == thread
    assert viewer.call("approval.list")
    tried: list[tuple[str, dict[str, Any]]] = [
        ("thread.send", {"thread": thread, "text": "x"}),
        ("thread.goal", {"thread": thread, "objective": "x"}),
        ("approval.answer", {"id": approval["id"], "hash": approval["hash"], "decision": "accept"}),
    ]
    for method, params in tried:
        with pytest.raises(CodexctlError, match="this device has no scope") as caught:
            viewer.call(method, **params)
        assert caught.value.exit_code == 126
    world.answer(approval, "decline")
    world.laptop.events(DONE, thread=thread)


def test_the_policy_caps_what_a_device_may_ask_for(world: World) -> None:
    asked: list[dict[str, Any]] = [{"sandbox": "danger-full-access"}, {"approval": "never"}]
    for modes in asked:
        with pytest.raises(CodexctlError, match="the policy of this host lets a device ask"):
            world.laptop.one("thread.start", prompt="hi", **modes)
    with pytest.raises(CodexctlError, match="is no sandbox mode"):
        world.laptop.one("thread.start", prompt="hi", sandbox="none")
    started = world.laptop.one("thread.start", sandbox="read-only")
    assert (started["sandbox"], started["bypass"]) == ("read-only", False)


def test_bad_names_and_folders_are_told_apart(world: World) -> None:
    world.start("hello", name="here")
    cases: list[tuple[str, dict[str, Any], str, int]] = [
        ("thread.show", {"thread": "nobody"}, "no thread of this host is called", 2),
        ("thread.show", {"thread": "01"}, "could be", 2),
        ("thread.show", {}, "needs thread, a text", 2),
        ("thread.start", {"prompt": "x", "cwd": "gone"}, "there is no folder", 2),
        ("thread.start", {"prompt": "x", "cwd": "/etc"}, "outside the workspace", 126),
        ("thread.start", {"prompt": "x", "worktree": True}, "not in a git repository", 2),
        ("approval.answer", {"id": "x", "hash": "y", "decision": "z"}, "no approval is called", 2),
        ("thread.nonsense", {}, "does not know 'thread.nonsense'", 2),
    ]
    for method, params, wrong, code in cases:
        with pytest.raises(CodexctlError, match=wrong) as caught:
            world.laptop.call(method, **params)
        assert caught.value.exit_code == code
    (world.work / "short-lived").mkdir()
    thread = world.start("hello", cwd="short-lived")
    world.laptop.events(DONE, thread=thread)
    (world.work / "short-lived").rmdir()
    with pytest.raises(CodexctlError, match="is not there any more"):
        world.laptop.one("thread.send", thread=thread, text="more")


# --- the tree ---


def test_the_diff_is_against_the_start_with_untracked_files(world: World) -> None:
    app = repository(world.work / "diffed")
    (app / "before.txt").write_text("there before\n")
    thread = world.start("hello", cwd="diffed")
    (app / "a.txt").write_text("two\n")
    (app / "new file").write_text("new\n")
    patch = world.laptop.bytes("thread.diff", thread=thread)
    assert b"-one\n+two\n" in patch
    assert b"new file" in patch
    assert b"before.txt" not in patch
    git(app, "add", "-A")
    git(app, "commit", "-q", "-m", "the agent's")
    assert world.laptop.bytes("thread.diff", thread=thread) == patch
    with pytest.raises(CodexctlError, match="is not in a git repository"):
        world.laptop.bytes("thread.diff", thread=world.start("hello"))


def test_a_worktree_has_a_branch_of_its_own(world: World) -> None:
    app = repository(world.work / "grown")
    made = world.laptop.one("thread.start", prompt="Fix the test!", cwd="grown", worktree=True)
    assert made["branch"] == "codex/fix-the-test"
    assert made["cwd"] == made["worktree"] == f"{app}.worktrees/codex-fix-the-test"
    again = world.laptop.one("thread.start", prompt="Fix the test!", cwd="grown", worktree=True)
    assert again["branch"] == "codex/fix-the-test-2"
    state = world.laptop.one("git.state", cwd=made["cwd"])
    assert (state["branch"], state["dirty"]) == ("codex/fix-the-test", False)


def test_the_agent_tells_how_it_is(world: World) -> None:
    status = world.laptop.one("agent.status")
    assert status["works"]
    assert status["most"] == {"sandbox": "workspace-write", "approval": "on-request"}
    assert status["events"]["last"] > 0


def test_a_hole_in_the_events_is_told(world: World) -> None:
    thread = world.start("hello")
    last = world.laptop.events(DONE, thread=thread)[-1]["cursor"]
    world.alter(f"DELETE FROM events WHERE cursor < {last}")
    events = world.laptop.call("thread.watch", thread=thread, cursor=1)
    assert events[0]["method"] == "codexctl/events/dropped"
    assert events[0]["params"] == {"after": 1, "before": last}
    assert events[1]["cursor"] == last


def test_a_codex_without_a_login_is_told_by_the_first_command(tmp_path: Path) -> None:
    with serving_model(script) as model:
        host = ThreadHost(tmp_path, model)
        try:
            codex_home = Path(host.machine.environment["CODEX_HOME"])
            (codex_home / "config.toml").write_text("")
            device = host.device("laptop")
            with pytest.raises(CodexctlError, match="codex on box is not logged in") as caught:
                device.one("thread.start", prompt="hello")
            assert caught.value.hint == "there: codex login"
            status = device.one("agent.status")
            assert (status["works"], status["logged_in"]) == (False, False)
        finally:
            host.close()
