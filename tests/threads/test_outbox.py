"""The outbox, names of threads, prompts and `--wait`: what needs no host."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.cli.thread_decide import _answers, _check, _content, _offered
from codexctl.cli.thread_prompt import MAX_PROMPT_BYTES, read_prompt
from codexctl.cli.thread_start import git_words
from codexctl.client import outbox
from codexctl.client.outbox import Message
from codexctl.client.thread_export import fenced, markdown
from codexctl.client.thread_follow import DONE, FAILED, REPLAYED, WAITING, Waiting
from codexctl.client.thread_view import ThreadView
from codexctl.client.threads import (
    KEPT_PER_HOST,
    Known,
    completions,
    forget,
    matching,
    open_threads,
    remember,
    remembered,
    split_address,
)
from codexctl.errors import CodexctlError, ConnectionFailed, Refused, UsageError
from codexctl.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home")).ensure()


# --- the outbox ---


def test_messages_go_in_order_once_and_to_their_host_alone(home: Home) -> None:
    db = open_threads(home)
    for host, text in (("h1", "a"), ("h2", "b"), ("h1", "c")):
        outbox.put(db, host, "t", text)
    sent: list[Message] = []
    outbox.deliver(db, "h1", sent.append)
    outbox.deliver(db, "h1", sent.append)
    assert [message.text for message in sent] == ["a", "c"]
    assert len({message.key for message in sent}) == 2
    assert [m.text for m in outbox.listed(db, "waiting")] == ["b"]


def test_a_lost_connection_leaves_the_message_with_its_key(home: Home) -> None:
    db = open_threads(home)
    first = outbox.put(db, "h", "t", "one")
    outbox.put(db, "h", "t", "two")
    tried: list[Message] = []

    def lose(message: Message) -> None:
        tried.append(message)
        raise ConnectionFailed("the answer was lost")

    for _ in range(3):
        with pytest.raises(ConnectionFailed):
            outbox.deliver(db, "h", lose)
    assert {message.key for message in tried} == {first.key}
    outbox.deliver(db, "h", tried.append)
    assert [message.text for message in tried[3:]] == ["one", "two"]
    assert tried[3].key == first.key


def test_an_agent_that_does_not_run_is_waited_for(home: Home) -> None:
    class NotNow(CodexctlError):
        code = "agent-unavailable"

    def send(message: Message) -> None:
        raise NotNow("the app-server is gone")

    db = open_threads(home)
    outbox.put(db, "h", "t", "one")
    with pytest.raises(NotNow):
        outbox.deliver(db, "h", send)
    assert outbox.waiting_count(db, "h") == 1


def test_what_follows_a_refused_message_in_its_thread_is_not_sent(home: Home) -> None:
    db = open_threads(home)
    for thread, text in (("t1", "no"), ("t2", "yes"), ("t1", "then")):
        outbox.put(db, "h", thread, text)

    def send(message: Message) -> None:
        if message.text == "no":
            raise Refused("the thread is archived")

    ended = outbox.deliver(db, "h", send)
    assert [(m.text, m.state) for m in ended] == [
        ("no", "refused"), ("yes", "delivered"), ("then", "refused"),
    ]  # fmt: skip
    assert "archived" in ended[2].error
    outbox.retry(db, ended[0].number)
    assert outbox.get(db, ended[0].number).key == ended[0].key
    outbox.drop(db, ended[2].number)
    with pytest.raises(UsageError, match="no message"):
        outbox.get(db, ended[2].number)


def test_the_outbox_has_bounds(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 2)
    monkeypatch.setattr(outbox, "KEPT_ENDED", 1)
    db = open_threads(home)
    with pytest.raises(UsageError, match="empty"):
        outbox.put(db, "h", "t", " \n")
    with pytest.raises(UsageError, match="bytes"):
        outbox.put(db, "h", "t", "x" * (outbox.MAX_TEXT_BYTES + 1))
    outbox.put(db, "h", "t", "one")
    outbox.put(db, "h", "t", "two")
    with pytest.raises(UsageError, match="wait already"):
        outbox.put(db, "h", "t", "three")
    outbox.deliver(db, "h", lambda message: None)
    assert [m.text for m in outbox.listed(db)] == ["two"]


def test_one_process_delivers_at_a_time(home: Home) -> None:
    code = (
        "import sys; from codexctl.client.outbox import delivering\n"
        "from codexctl.paths import Home\n"
        "with delivering(Home(sys.argv[1]), wait=False) as mine: print(mine)"
    )
    command = [sys.executable, "-c", code, home.path]
    with outbox.delivering(home, wait=True) as mine:
        assert mine
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"False\n"
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"True\n"


# --- names ---


ONE = Known("h1", "01a1fdb6-c7e9-76d3-893e-feceaa6604ea", "fix", "/a", "p", 1)
TWO = Known("h1", "01a1fdb6-aaaa-76d3-893e-feceaa6604ea", "01a1fdb6", "/b", "p", 2)


def test_an_id_goes_before_a_name_and_a_name_before_a_prefix() -> None:
    threads = [ONE, TWO]
    assert matching(threads, ONE.id) == [ONE]
    assert matching(threads, "fix") == [ONE]
    assert matching(threads, "01a1fdb6") == [TWO]
    assert matching(threads, "01A1FDB6-C") == [ONE]
    assert matching(threads, "01a1f") == [ONE, TWO]
    assert matching(threads, "01a") == []
    assert matching(threads, "") == []


def test_a_host_stands_before_the_first_colon_if_there_is_one_of_that_name() -> None:
    assert split_address("box:a:b", ["box"]) == ("box", "a:b")
    assert split_address("boy:a", ["box"]) == (None, "boy:a")
    with pytest.raises(UsageError, match="names no thread"):
        split_address("box:", ["box"])


def test_what_hosts_listed_is_remembered_within_bounds(home: Home) -> None:
    assert completions(home, "") == []
    db = open_threads(home)
    remember(db, "h1", [{"id": f"{n:08}", "updated_at": n} for n in range(KEPT_PER_HOST + 5)])
    remember(db, "h2", [{"id": "01a1fdb6-c7e9-76d3", "name": "fix it", "cwd": "/a"}])
    assert len([t for t in remembered(db) if t.host == "h1"]) == KEPT_PER_HOST
    assert completions(home, "fix") == [("fix it", "/a")]
    assert completions(home, "01a1") == [("01a1fdb6-c7e9", "fix it")]
    forget(db, "h2", "01a1fdb6-c7e9-76d3")
    assert completions(home, "fix") == []


def test_a_thread_that_moved_is_remembered_where_it_is(home: Home) -> None:
    db = open_threads(home)
    remember(db, "h1", [{"id": "01a1fdb6-c7e9", "name": "fix it"}])
    remember(db, "h2", [{"id": "01a1fdb6-c7e9", "name": "fix it"}])
    assert [t.host for t in remembered(db)] == ["h2"]
    remember(db, "h1", [{"id": "01a1fdb6-c7e9", "moved_to": "h2"}])
    assert [t.host for t in remembered(db)] == ["h2"]
    remember(db, "h2", [{"id": "01a1fdb6-c7e9", "moved_to": "h1"}])
    assert remembered(db) == []


# --- prompts ---


def test_a_prompt_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("from a\n")
    assert read_prompt(("fix", "it"), ()) == "fix it"
    assert read_prompt(("fix",), (str(tmp_path / "a"),)) == "fix\n\nfrom a"

    def stdin(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    stdin(b"from stdin\n")
    assert read_prompt(("-",), ()) == "from stdin"
    stdin(b"from stdin\n")
    assert read_prompt((), ("-",)) == "from stdin"
    stdin(b"x" * (MAX_PROMPT_BYTES + 1))
    with pytest.raises(UsageError, match="more than 1 MiB"):
        read_prompt(("-",), ())
    with pytest.raises(UsageError, match="cannot read"):
        read_prompt((), (str(tmp_path / "missing"),))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"repository": None}, "no git repository"),
        ({"repository": None, "bare": True}, "a bare git repository"),
        ({"repository": "/r", "branch": "main", "head": "a" * 40}, "main aaaaaaaaa, clean"),
        (
            {"repository": "/r", "branch": None, "head": "b" * 40, "conflicted": 2,
             "in_progress": "rebase"},
            "no branch bbbbbbbbb, 2 in conflict, in the middle of a rebase",
        ),
        ({"repository": "/r", "branch": "m", "untracked": 1}, "m, no commit yet, 1 untracked"),
    ],
)  # fmt: skip
def test_git_states_in_words(state: dict[str, Any], words: str) -> None:
    assert git_words(state) == words


# --- decisions ---


def test_answers_are_matched_with_their_questions() -> None:
    one = {"questions": [{"id": "q1", "question": "Which?"}]}
    two = {"questions": [{"id": "q1"}, {"id": "q2"}]}
    assert _answers(one, ("the = second",)) == {"q1": "the = second"}
    assert _answers(one, ("q1=b",)) == {"q1": "b"}
    assert _answers(two, ("q2=b", "q1=a=c")) == {"q1": "a=c", "q2": "b"}
    with pytest.raises(UsageError, match="none of the questions"):
        _answers(two, ("b",))
    with pytest.raises(UsageError, match="cannot ask"):
        _answers(two, ("q1=a",))


def form(**fields: str) -> dict[str, Any]:
    properties = {name: {"type": kind} for name, kind in fields.items()}
    schema = {"properties": properties, "required": list(fields)}
    return {"id": "a", "elicitation": {"requestedSchema": schema}}


def test_the_content_of_a_form_has_the_types_of_its_schema() -> None:
    two = form(name="string", n="integer")
    assert _content(two, '{"n": 1}', ("name=x",)) == {"n": 1, "name": "x"}
    assert _content(two, None, ("name=1", "n=2")) == {"name": "1", "n": 2}
    assert _content(form(ok="boolean"), None, ("yes",)) == {"ok": True}
    assert _content(form(x="number"), None, ("x=1.5",)) == {"x": 1.5}
    for asked, content, texts in (
        (two, "[1]", ()),
        (two, "{", ()),
        (two, None, ("x",)),
        (two, None, ("y=1",)),
        (two, None, ("n=1.5",)),
        (two, None, ("name=x",)),
        (form(ok="boolean"), None, ("1",)),
        ({"id": "a", "elicitation": {}}, None, ()),
    ):
        with pytest.raises(UsageError):
            _content(asked, content, texts)


def test_what_is_decided_is_what_the_hash_is_of() -> None:
    from codexctl.agent.approvals import digest

    shown = {"id": "a1", "thread": "t", "turn": None, "kind": "command", "command": "ls"}
    approval = {
        **shown,
        "hash": digest(shown),
        "created_at": 1,
        "expires_in_s": 9,
        "state": "pending",
    }
    _check(approval, None)
    _check(approval, approval["hash"][:8])
    with pytest.raises(Refused, match="not of what it sent"):
        _check({**approval, "command": "rm"}, None)
    for wrong in ("", "0" * 64, approval["hash"][:7]):
        with pytest.raises(Refused, match="has the hash"):
            _check(approval, wrong)


def test_a_decision_may_be_shortened_but_not_guessed() -> None:
    approval = {"id": "a", "kind": "command"}
    offered = ["accept", "acceptWithExecpolicyAmendment", "decline", "cancel"]
    assert _offered("accept", offered, approval) == "accept"
    assert _offered("acceptWith", offered, approval) == "acceptWithExecpolicyAmendment"
    with pytest.raises(UsageError, match="not offered"):
        _offered("acceptForSession", offered, approval)
    with pytest.raises(UsageError, match="question"):
        _offered("accept", ["answer"], {"id": "a", "kind": "question"})


# --- --wait ---


def status(*methods: tuple[str, dict[str, Any]], expected: bool = True, word: str = "") -> Any:
    view = ThreadView()
    waiting = Waiting(view, turn_expected=expected)
    for method, params in methods:
        event = {"method": method, "params": params}
        view.feed(event)
        found = waiting.status(event, thread_status=word)
        if found is not None:
            return found
    return None


ASKED = ("codexctl/approval/requested", {"approval": {"id": "a"}})
ANSWERED = ("codexctl/approval/ended", {"approval": {"id": "a", "state": "answered"}})
LIVE: tuple[str, dict[str, Any]] = (REPLAYED, {})


def ended(how: str) -> tuple[str, dict[str, Any]]:
    return "turn/completed", {"turn": {"status": how}}


def test_wait_decides_on_what_is_so_now() -> None:
    assert status(LIVE) is None
    assert status(ended("completed")) is None
    assert status(ended("completed"), LIVE) == DONE
    assert status(LIVE, ended("failed")) == FAILED
    assert status(LIVE, ended("interrupted")) == FAILED
    assert status(ASKED, LIVE) == WAITING
    assert status(ASKED, ANSWERED, LIVE) is None
    assert status(LIVE, ("codexctl/agent/ended", {"message": "it is gone"})) == FAILED
    for word, found in (("idle", DONE), ("waiting", WAITING), ("failed", FAILED), ("active", None)):
        assert status(LIVE, expected=False, word=word) == found


# --- export ---


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="`a\n", max_size=30))
def test_a_fence_is_never_ended_by_its_content(text: str) -> None:
    lines = fenced(text, "x").split("\n")
    fence = lines[0].removesuffix("x")
    assert lines[-2] == fence
    assert fence not in text


def test_markdown_tells_of_turns_that_did_not_end_well() -> None:
    lines = [
        {"thread": {"id": "t", "name": None, "preview": "do\nit", "cwd": "/a", "created_at": 0}},
        {"turn": {"status": "failed", "error": {"message": "no credit"}, "items": [
            {"type": "userMessage", "id": "1", "content": [{"type": "text", "text": "a\nb"}]},
            {"type": "reasoning", "id": "2", "summary": ["why"]},
            {"type": "fileChange", "id": "3", "status": "completed",
             "changes": [{"path": "/a/x", "kind": {"type": "add"}, "diff": "one\n"}]},
        ]}},
    ]  # fmt: skip
    text = "".join(markdown(lines))
    assert text.startswith("# do it\n\n- thread: t\n- folder: /a\n- begun: 1970-01-01 00:00 UTC\n")
    assert "## Asked\n\na\nb\n" in text
    assert "> why\n" in text
    assert "Added `x`:\n\n```diff\n+one\n```\n" in text
    assert text.endswith("*The turn was failed: no credit.*\n")
