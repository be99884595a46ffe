"""The thread commands as a person uses them: real relay, host, devices and codex."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.support.codex import needs_codex
from tests.threads.terminal import Terminal
from tests.threads.world import World

pytestmark = needs_codex


def events(stdout: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in stdout.splitlines()]


def test_start_says_where_it_works_and_what_is_not_committed(world: World) -> None:
    (world.box.work / "left").write_text("over\n")
    done = world.laptop.run("thread", "start", "box", "say", "hello there", "--wait")
    said = done.stderr.decode()
    assert f"box:{world.box.work}  main " in said
    assert "warning: not all is committed there (1 untracked)" in said
    assert "> say hello there\n\nhello there\n" in done.stdout.decode()
    (world.box.work / "left").unlink()


def test_the_prompt_comes_from_stdin_and_files(world: World, tmp_path: Path) -> None:
    (tmp_path / "task.md").write_text("from a file\n")
    options = ("--prompt-file", str(tmp_path / "task.md"), "--wait")
    done = world.laptop.run("thread", "start", "box", "-", *options, input=b"say from stdin\n")
    assert "from stdin\n\nfrom a file" in done.stdout.decode()
    done = world.laptop.run("thread", "start", "box", "-", input=b"\xff\xfe", check=2)
    assert b"standard input is not UTF-8" in done.stderr
    done = world.laptop.run("thread", "start", "box", check=2)
    assert b"starts with a prompt" in done.stderr


def test_wait_tells_scripts_how_it_ended(world: World) -> None:
    thread = world.start("say fine")
    failed = world.laptop.run("thread", "send", thread, "fail", "--wait", check=20)
    assert b"the model is told to fail" in failed.stdout
    world.laptop.run("thread", "watch", thread, "--wait", check=20)
    asked = world.laptop.run("thread", "send", thread, "ask true", "--wait", "--json", check=10)
    assert "codexctl/approval/requested" in [e["method"] for e in events(asked.stdout)]
    # What waits already is found as well, from any point on.
    world.phone.run("thread", "watch", thread, "--cursor", "now", "--wait", check=10)
    world.phone.run("thread", "deny", thread)
    world.laptop.run("thread", "watch", thread, "--wait", check=0)


def test_json_is_the_official_events_and_goes_on_behind_a_cursor(world: World) -> None:
    thread = world.start("say one")
    all_of_it = events(world.laptop.run("thread", "watch", thread, "--json", "--no-follow").stdout)
    official = [event for event in all_of_it if event["method"] == "turn/completed"]
    assert [event["params"]["threadId"] for event in official] == [thread]  # type: ignore[index]
    cursors = [event["cursor"] for event in all_of_it]
    assert cursors == sorted(cursors)  # type: ignore[type-var]
    half = all_of_it[len(all_of_it) // 2]["cursor"]
    rest = world.laptop.run(
        "thread", "watch", thread, "--json", "--no-follow", "--cursor", str(half)
    )
    assert [event["cursor"] for event in events(rest.stdout)[:-1]] == [
        cursor
        for cursor in cursors[:-1]
        if cursor > half  # type: ignore[operator]
    ]


def test_threads_are_found_by_id_name_host_and_link(world: World) -> None:
    thread = world.start("say hi", "--name", "the one: with a colon")
    for words in (thread, thread[:13], "the one: with a colon", f"box:{thread[:20]}",
                  f"http://127.0.0.1:1/thread#box:{thread}"):  # fmt: skip
        shown = world.laptop.run("thread", "show", words, "--json").stdout
        assert events(shown)[0]["id"] == thread
    missing = world.laptop.run("thread", "show", "no such thread", check=2)
    assert b"no such thread" in missing.stderr
    ambiguous = world.laptop.run("thread", "show", thread[:4], check=2)
    assert b"name one of:" in ambiguous.stderr


def test_a_thread_is_listed_shown_renamed_forked_and_put_away(world: World) -> None:
    thread = world.start("run echo out; exit 3", "--name", "first name")
    shown = world.laptop.run("thread", "show", thread).stdout.decode()
    assert "$ echo out; exit 3  exit 3" in shown
    assert "first name" in shown
    world.laptop.run("thread", "rename", thread, "second name")
    fork = world.laptop.run("thread", "fork", "second name").stdout.decode().strip()
    world.laptop.run("thread", "send", fork, "say forked", "--wait")
    earlier = json.dumps(world.model.requests[-1]["input"])
    assert "run echo out; exit 3" in earlier
    world.laptop.run("thread", "archive", fork)
    listed = {t["id"]: t for t in world.laptop.json("thread", "list", "--all")}
    assert listed[thread]["name"] == "second name"
    assert fork not in listed
    refused = world.laptop.run("thread", "send", fork, "say more", check=None)
    assert refused.returncode != 0
    assert b"archived" in refused.stderr
    assert world.laptop.json("thread", "outbox") == []
    world.laptop.run("thread", "archive", "--undo", fork)
    world.laptop.run("thread", "send", fork, "say more", "--wait")


def test_a_goal_is_set_paused_and_cleared(world: World) -> None:
    thread = world.start("say hi")
    assert world.laptop.json("thread", "goal", thread)["goal"] is None
    # Paused from the start, so that no turn begins by itself.
    set_ = world.laptop.json("thread", "goal", thread, "all tests pass", "--pause")
    assert set_["goal"]["objective"] == "all tests pass"
    world.laptop.run("thread", "goal", thread, "--clear")
    assert world.laptop.json("thread", "goal", thread)["goal"] is None


def test_a_running_turn_is_steered_and_interrupted(world: World) -> None:
    thread = world.start("say hi")
    sign = world.box.work / "go"
    command = f"run while [ ! -e {sign} ]; do sleep 0.1; done"
    world.laptop.run("thread", "send", thread, command)
    world.laptop.run("thread", "steer", thread, "say steered")
    sign.touch()
    watched = world.laptop.run("thread", "watch", thread, "--wait").stdout
    assert b"> say steered" in watched
    none = world.laptop.run("thread", "steer", thread, "too late", check=2)
    assert b"no turn runs" in none.stderr
    sign.unlink()
    world.laptop.run("thread", "send", thread, command)
    world.phone.run("thread", "interrupt", thread)
    ended = world.laptop.run("thread", "watch", thread, "--wait", check=20).stdout
    assert b"turn interrupted" in ended


def test_the_diff_is_shown_summed_up_and_applied_elsewhere(world: World, tmp_path: Path) -> None:
    thread = world.start("patch", "--worktree", "--branch", "the-fix")
    made = events(world.laptop.run("thread", "show", thread, "--json").stdout)[0]
    assert made["branch"] == "the-fix"
    assert str(made["cwd"]).startswith(str(made["worktree"]))
    shown = world.laptop.run("thread", "diff", thread).stdout
    assert b"+hello world\n" in shown
    stat = world.laptop.run("thread", "diff", thread, "--stat").stdout.decode()
    assert stat.splitlines()[-1] == " 2 files changed, 2 insertions(+), 1 deletion(-)"
    names = world.laptop.run("thread", "diff", thread, "--name-only").stdout
    assert names == b"a.txt\nnew.txt\n"
    # The host's own checkout is as it was: the thread has a worktree.
    assert (world.box.work / "a.txt").read_text() == "hello\n"
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", world.box.work, checkout], check=True)
    applied = world.laptop.json("thread", "diff", thread, "--apply", "--to", str(checkout))
    assert applied["files"] == ["a.txt", "new.txt"]
    assert (checkout / "a.txt").read_text() == "hello world\n"
    (checkout / "a.txt").write_text("mine\n")
    conflict = world.laptop.run("thread", "diff", thread, "--apply", "--to", str(checkout), check=1)
    assert b"a.txt" in conflict.stderr
    assert (checkout / "a.txt").read_text() == "mine\n"


def test_a_review_runs_as_a_turn(world: World) -> None:
    thread = world.start("say hi")
    done = world.laptop.run("thread", "review", thread, "say it is good", "--wait")
    assert b"turn done" in done.stdout


def test_a_conversation_is_exported(world: World, tmp_path: Path) -> None:
    thread = world.start("run echo '```'", "--name", "to keep")
    out = tmp_path / "thread.md"
    world.laptop.run("thread", "export", thread, "-o", str(out))
    text = out.read_text()
    assert text.startswith("# to keep\n")
    assert "````console\n$ echo '```'\n```\n````" in text
    again = world.laptop.run("thread", "export", thread, "-o", str(out), check=2)
    assert b"exists already" in again.stderr
    lines = events(world.laptop.run("thread", "export", thread, "--format", "jsonl").stdout)
    assert lines[0]["thread"]["id"] == thread  # type: ignore[index]


# --- decisions ---


def test_a_decision_is_bound_to_what_was_shown_and_made_once(world: World) -> None:
    thread = world.start("ask echo outside", check=10)
    waiting = world.pending(thread)
    assert waiting["command"].endswith("'echo outside'")
    assert waiting["reason"] == "it needs the network"
    listed = world.phone.run("inbox").stdout.decode()
    assert "$ echo outside" in listed
    assert f"codexctl thread approve {waiting['id']}" in listed
    other = world.phone.run("thread", "approve", thread, "--hash", "0" * 64, check=126)
    assert waiting["hash"].encode() in other.stderr
    unasked = world.phone.run("thread", "approve", thread, check=2)
    assert b"stdin is not a terminal" in unasked.stderr
    done = world.phone.run("thread", "approve", waiting["id"], "--hash", waiting["hash"][:16])
    assert b"$ echo outside" in done.stderr
    assert done.stdout == b"decided: accept\n"
    # Whoever comes second is told who decided what, by the id and by the thread.
    for target in (waiting["id"], thread):
        second = world.laptop.run("thread", "deny", target, check=126)
        assert b"has decided accept at 20" in second.stderr
    shown = world.laptop.run("thread", "watch", thread, "--wait").stdout.decode()
    assert "? accept by " in shown
    assert "$ echo outside  ✓" in shown


def test_a_denial_goes_on_and_a_stop_ends_the_turn(world: World) -> None:
    thread = world.start("ask echo one", check=10)
    world.laptop.run("thread", "deny", thread)
    world.laptop.run("thread", "watch", thread, "--wait")
    world.laptop.run("thread", "send", thread, "ask echo two", "--wait", check=10)
    world.laptop.run("thread", "deny", thread, "--stop")
    world.laptop.run("thread", "watch", thread, "--wait", check=20)
    nothing = world.laptop.run("thread", "approve", thread, "--yes", check=126)
    assert b"has decided cancel" in nothing.stderr


def test_what_is_not_offered_is_refused_with_what_is(world: World) -> None:
    thread = world.start("ask echo three", check=10)
    wrong = world.laptop.run("thread", "approve", thread, "--option", "nonsense", check=2)
    assert b"there is: accept, " in wrong.stderr
    text = world.laptop.run("thread", "answer", thread, "yes", check=2)
    assert b"codexctl thread approve" in text.stderr
    world.laptop.run("thread", "approve", thread, "--option", "acceptWithExec", "--yes")
    world.laptop.run("thread", "watch", thread, "--wait")


def test_questions_permissions_and_forms_are_answered(world: World) -> None:
    thread = world.start("question please", check=10)
    listed = world.laptop.run("inbox").stdout.decode()
    assert "color: Which?\n    - red  r" in listed
    assert "codexctl thread answer " in listed
    wrong = world.laptop.run("thread", "approve", thread, "--yes", check=2)
    assert b"takes an answer" in wrong.stderr
    world.laptop.run("thread", "answer", thread, "blue")
    world.laptop.run("thread", "watch", thread, "--wait")
    assert "blue" in json.dumps(world.model.requests[-1]["input"][-1])

    thread = world.start("permissions please", check=10)
    world.laptop.run("thread", "approve", thread, "--for-session", "--yes")
    world.laptop.run("thread", "watch", thread, "--wait")
    assert "session" in json.dumps(world.model.requests[-1]["input"][-1])

    thread = world.start("greet me", check=10)
    plain = world.laptop.run("thread", "answer", thread, check=2)
    assert b"codexctl thread approve" in plain.stderr
    world.laptop.run("thread", "approve", thread, "--yes")
    world.laptop.run("thread", "watch", thread, "--wait", "--cursor", "now", check=10)
    world.laptop.run("thread", "answer", thread, "name=Ada")
    world.laptop.run("thread", "watch", thread, "--wait")
    assert "Ada" in json.dumps(world.model.requests[-1]["input"][-1])


def test_full_access_is_refused_where_the_owner_has_not_allowed_it(world: World) -> None:
    refused = world.laptop.run(
        "thread", "start", "box", "say hi", "--sandbox", "danger-full-access", check=126
    )
    assert b"policy" in refused.stderr


def test_a_long_diff_is_paged_in_colour(world: World) -> None:
    thread = world.start("patch")
    world.laptop.environment["CODEXCTL_PAGER"] = "sed s/^/PAGED:/"
    try:
        with Terminal(world.laptop, "thread", "diff", thread, rows=5) as terminal:
            assert terminal.wait() == 0
        assert "PAGED:+hello world" in terminal.output
        assert "\x1b[32m+hello world" in terminal.raw
        with Terminal(world.laptop, "thread", "diff", thread, rows=60) as terminal:
            assert terminal.wait() == 0
        assert "PAGED:" not in terminal.output
    finally:
        del world.laptop.environment["CODEXCTL_PAGER"]
        for words in (["checkout", "-q", "a.txt"], ["clean", "-qf"]):
            subprocess.run(["git", *words], cwd=world.box.work, check=True)


def test_threads_complete_by_id_and_name(world: World) -> None:
    thread = world.start("say hi", "--name", "complete me")
    environment = {
        **world.laptop.environment,
        "_CODEXCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "codexctl thread show compl",
        "COMP_CWORD": "3",
    }
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "codexctl"], env=environment, capture_output=True, check=True
    )
    assert b"plain,complete me" in done.stdout
    environment["COMP_WORDS"] = f"codexctl thread show {thread[:6]}"
    done = subprocess.run(
        [sys.executable, "-m", "codexctl"], env=environment, capture_output=True, check=True
    )
    assert f"plain,{thread[:13]}".encode() in done.stdout
