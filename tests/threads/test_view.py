"""Events become blocks, blocks become lines, lines become a terminal's content."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.client.thread_view import LIVE_OUTPUT_CHARS, Block, ThreadView, plain_command
from codexctl.client.thread_view_painter import Painter
from codexctl.client.thread_view_render import clean, lines, live_lines, span
from tests.threads.screen import Screen

THREAD, TURN = "01a1fdb6-c7e9-76d3-893e-feceaa6604ea", "01a1fdb6-c7ff-70b2-baa3-20e68ffa1404"
SGR = re.compile(r"\x1b\[[0-9;]*m")


def event(cursor: int, method: str, **params: Any) -> dict[str, Any]:
    return {
        "cursor": cursor, "at": 1, "thread": THREAD, "method": method,
        "params": {"threadId": THREAD, "turnId": TURN, **params},
    }  # fmt: skip


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "id": fields.pop("id", "i"), **fields}


def viewed(*events: dict[str, Any]) -> ThreadView:
    view = ThreadView()
    view.cwd = "/home/u/app"
    for each in events:
        view.feed(each)
    return view


def plain(text: list[str]) -> str:
    return "\n".join(SGR.sub("", line) for line in text)


COMMAND = item(
    "commandExecution", id="c1", command="/bin/bash -lc 'pytest -q'", status="inProgress"
)
STARTED = event(2, "item/started", item=COMMAND, startedAtMs=1000)
FILES = item(
    "fileChange",
    id="f1",
    status="completed",
    changes=[
        {
            "path": "/home/u/app/a.txt",
            "kind": {"type": "update", "move_path": None},
            "diff": "@@ -1 +1 @@\n-hello\n+hello world\n",
        },
        {"path": "/home/u/app/new.txt", "kind": {"type": "add"}, "diff": "new\n"},
    ],
)


def test_a_turn_becomes_blocks_in_the_order_of_their_ends() -> None:
    view = viewed(
        event(1, "turn/started", turn={"id": TURN, "status": "inProgress"}),
        event(
            2, "item/completed", item=item("userMessage", content=[{"type": "text", "text": "go"}])
        ),
        STARTED,
        event(4, "item/started", item=item("agentMessage", id="m", text="")),
        event(5, "item/agentMessage/delta", itemId="m", delta="He"),
        event(6, "item/completed", item=item("agentMessage", id="m", text="Hello")),
        event(
            7,
            "item/completed",
            item={**COMMAND, "status": "failed", "exitCode": 3, "aggregatedOutput": "no\n"},
        ),
        event(8, "turn/completed", turn={"id": TURN, "status": "completed", "durationMs": 600}),
    )
    assert [(b.kind, b.text, b.state) for b in view.take()] == [
        ("user", "go", "done"),
        ("message", "Hello", "done"),
        ("command", "no\n", "failed"),
        ("turn", "", "completed"),
    ]
    assert (view.status, view.outcome, view.cursor, view.live) == ("idle", "completed", 8, {})
    assert view.take() == []


def test_a_block_whose_end_never_came_ends_with_the_turn() -> None:
    view = viewed(STARTED, event(3, "turn/completed", turn={"id": TURN, "status": "interrupted"}))
    assert [(b.kind, b.state) for b in view.take()] == [
        ("command", "interrupted"),
        ("turn", "interrupted"),
    ]


def test_a_running_command_keeps_the_end_of_its_output() -> None:
    view = viewed(STARTED)
    for at in range(100):
        view.feed(event(at + 3, "item/commandExecution/outputDelta", itemId="c1", delta="x" * 9999))
    view.feed(event(200, "item/commandExecution/outputDelta", itemId="c1", delta="end"))
    (block,) = view.live.values()
    assert len(block.text) == LIVE_OUTPUT_CHARS
    assert block.text.endswith("end")


def test_waiting_is_what_the_official_flags_say() -> None:
    status = {"type": "active", "activeFlags": ["waitingOnApproval"]}
    view = viewed(event(1, "thread/status/changed", status=status))
    assert view.status == "waiting"
    view.feed(event(2, "thread/status/changed", status={"type": "active", "activeFlags": []}))
    assert view.status == "active"


def test_the_shell_around_a_command_is_not_shown() -> None:
    assert plain_command("/bin/bash -lc 'cat a; exit 3'") == "cat a; exit 3"
    assert plain_command("git status") == "git status"
    assert plain_command("echo 'open") == "echo 'open"


def test_files_are_shown_from_the_threads_folder() -> None:
    shown = plain(lines(viewed(event(1, "item/completed", item=FILES)).take(), 60))
    assert "M a.txt\n  @@ -1 +1 @@\n  -hello\n  +hello world\nA new.txt\n  +new" in shown


def test_a_long_output_is_cut_in_the_middle_and_whole_when_asked_for() -> None:
    block = Block("command", title="seq 100", state="done")
    block.text = "".join(f"{n}\n" for n in range(1, 101))
    assert "  4\n  … 84 lines …\n  89\n" in plain(lines([block], 60))
    assert "  50\n" in plain(lines([block], 60, full=True))


def test_an_approval_says_all_that_is_decided_and_how() -> None:
    approval = {
        "id": "7f3a9c0d11aa", "kind": "command", "command": "/bin/bash -lc 'rm -rf build'",
        "cwd": "/home/u/app", "reason": "clean build",
    }  # fmt: skip
    shown = plain(lines([Block("approval", state="pending", approval=approval)], 60))
    for words in ("$ rm -rf build", "/home/u/app", "clean build", "thread approve 7f3a9c0d11aa"):
        assert words in shown
    answered = {**approval, "state": "answered", "decision": "accept", "decided_by": "phone"}
    (line,) = lines([Block("approval", state="answered", approval=answered)], 60, colour=False)
    assert line == "? accept by phone: rm -rf build"


def test_nothing_that_a_terminal_obeys_comes_through() -> None:
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://x\x1b\\a\tb") == "red a   b"
    assert clean("10%\r20%\r\nnext\x07\x9b2J") == "20%\nnext\\x07\\x9b2J"
    assert clean("open \x1b]0;never closed") == "open "
    block = Block("message", text="[x](file:///etc/passwd) \x1b[2Jand `code`", state="done")
    assert "\x1b[2J" not in "".join(lines([block], 60))
    assert "\x1b]" not in "".join(lines([block], 60))


def test_durations() -> None:
    assert [span(s) for s in (0.42, 42, 185, 7800)] == ["0.4 s", "42 s", "3 min 5 s", "2 h 10 min"]


text = st.text(max_size=60)
blocks = st.builds(
    Block,
    kind=st.sampled_from(
        ["user", "message", "reasoning", "review", "command", "files", "plan", "tool", "approval",
         "turn", "notice", "of a later version"]
    ),
    title=text,
    text=text,
    state=st.sampled_from(["done", "failed", "declined", "interrupted", "pending", "completed"]),
    exit_code=st.none() | st.integers(0, 255),
    duration_s=st.none() | st.floats(0, 1e5),
    changes=st.lists(st.fixed_dictionaries({"path": text, "diff": text})).map(tuple),
    steps=st.lists(st.fixed_dictionaries({"step": text, "status": text})).map(tuple),
    approval=st.fixed_dictionaries({"id": text, "command": text, "reason": text, "patch": text}),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(blocks, max_size=4), st.integers(20, 120), st.booleans())
def test_any_blocks_fit_any_width(found: list[Block], width: int, full: bool) -> None:
    from rich.cells import cell_len

    for line in lines(found, width, full=full):
        assert SGR.sub("", line).isprintable()
        assert cell_len(SGR.sub("", line)) <= width


values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
METHODS = [
    "thread/status/changed", "thread/name/updated", "thread/goal/updated", "turn/started",
    "turn/completed", "turn/plan/updated", "item/started", "item/completed", "error", "warning",
    "item/agentMessage/delta", "item/fileChange/patchUpdated", "thread/tokenUsage/updated",
    "codexctl/approval/requested", "codexctl/approval/ended", "unheard/of",
]  # fmt: skip
FIELDS = ["item", "turn", "status", "itemId", "delta", "changes", "plan", "error", "approval"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "cursor": values,
                "method": st.sampled_from(METHODS),
                "params": st.dictionaries(st.sampled_from(FIELDS), values) | values,
            }
        ),
        max_size=8,
    )
)
def test_no_event_of_any_form_ends_the_view(events: list[dict[str, Any]]) -> None:
    view = viewed(*events)
    lines(view.take(), 40)
    live_lines(view, 40, 8, now_ms=0)


# --- the painter, against a small terminal ---


def test_what_changes_is_written_below_what_stays() -> None:
    painter, screen = Painter(), Screen()
    screen.feed(painter.frame(["one"], ["running", "state"]))
    screen.feed(painter.frame([], ["running 2", "state"]))
    assert screen.lines() == ["one", "running 2", "state"]
    screen.feed(painter.frame(["two", "three"], ["state"]))
    assert screen.lines() == ["one", "two", "three", "state"]
    screen.feed(painter.forget())
    assert screen.lines() == ["one", "two", "three"]


def test_a_line_that_did_not_change_is_not_written_again() -> None:
    painter = Painter()
    painter.frame([], ["the same", "running 1"])
    frame = painter.frame([], ["the same", "running 2"])
    assert "the same" not in frame
    assert painter.frame([], ["the same", "running 2"]) == ""
    # One write between the marks of synchronized output; nothing is erased before it is written.
    assert frame.startswith("\x1b[?2026h")
    assert frame.endswith("\x1b[?2026l")


line = st.text(alphabet="abc", min_size=1, max_size=10)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(line, max_size=4), st.lists(line, max_size=4)), max_size=8))
def test_after_any_frames_the_screen_shows_all_that_stays_and_the_last_that_changes(
    frames: list[tuple[list[str], list[str]]],
) -> None:
    painter, screen, stays = Painter(), Screen(), []
    for more, live in frames:
        screen.feed(painter.frame(more, live))
        stays += more
        assert screen.lines() == [*stays, *live]
    screen.feed(painter.forget())
    assert screen.lines() == stays
