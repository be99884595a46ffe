"""Tables, JSON, colours, progress: one record, two faces, nothing that drives the terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.cli import output
from codexctl.cli.output import (
    as_plain,
    cell,
    emit,
    emit_line,
    format_table,
    notice,
    paint,
    printable,
    progress,
    size_text,
)
from codexctl.secret import Secret

SHOWN_WITHIN_S = 30.0


class Row(NamedTuple):
    name: str
    online: bool
    last_seen: int | None
    scopes: tuple[str, ...] = ()


ROWS = [Row("box", True, 5, ("view", "exec")), Row("häuschen 家", False, None)]


def test_a_list_is_a_table_or_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, False, table=("name", "online", "last_seen", "scopes"))
    assert capsys.readouterr().out == (
        "NAME         ONLINE  LAST SEEN  SCOPES\n"
        "box          yes     5          view, exec\n"
        "häuschen 家  no      -          -\n"
    )
    emit(ROWS, True)
    assert json.loads(capsys.readouterr().out) == [
        {"name": "box", "online": True, "last_seen": 5, "scopes": ["view", "exec"]},
        {"name": "häuschen 家", "online": False, "last_seen": None, "scopes": []},
    ]


def test_a_record_is_lines_or_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS[0], False)
    assert capsys.readouterr().out == (
        "name:      box\nonline:    yes\nlast seen: 5\nscopes:    view, exec\n"
    )
    emit(ROWS[0], False, text="box is online")
    assert capsys.readouterr().out == "box is online\n"
    emit_line(ROWS[0])
    assert json.loads(capsys.readouterr().out)["name"] == "box"


def test_an_empty_list_is_a_notice_or_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    emit([], False, table=("name",), empty="no hosts yet")
    assert capsys.readouterr() == ("", "codexctl: no hosts yet\n")
    emit([], True, empty="no hosts yet")
    assert capsys.readouterr() == ("[]\n", "")


def test_what_becomes_plain() -> None:
    @dataclass(frozen=True)
    class Record:
        token: Secret
        path: PurePosixPath
        scopes: frozenset[str]

    record = Record(Secret("hush"), PurePosixPath("/tmp"), frozenset({"view", "exec"}))
    assert as_plain(record) == {"token": "(hidden)", "path": "/tmp", "scopes": ["exec", "view"]}
    with pytest.raises(TypeError, match="no JSON form for bytes"):
        as_plain({"key": b"raw"})


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_no_text_drives_the_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert cell(text).isprintable()
    assert text != shown or text.isprintable()


def test_a_name_with_escapes_stays_in_its_cell() -> None:
    table = format_table([{"name": "a\x1b[2J\nb"}], ["name"])
    assert table == "NAME\na\\x1b[2J\\nb\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (200 << 20, "200.0 MiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """stderr is a terminal of 40 columns; yields the descriptor to read what it shows.

    No fixture, since pytest sets its own stderr between a fixture and its test.
    """
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((40, 24)))
    with open(writer, "w", encoding="utf-8", newline="") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield reader
    os.close(reader)


def _shown(reader: int, until: str) -> str:
    """What the terminal shows, up to `until` at its end; the kernel may hand it over in parts."""
    seen = ""
    while not seen.endswith(until):
        ready, _, _ = select.select([reader], [], [], SHOWN_WITHIN_S)
        assert ready, f"{until!r} did not come; seen: {seen!r}"
        seen += os.read(reader, 65536).decode()
    return seen


def test_colour_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch):
        assert paint("x", "red", sys.stderr) == "\x1b[31mx\x1b[0m"
        monkeypatch.setenv("NO_COLOR", "1")
        assert paint("x", "red", sys.stderr) == "x"
        monkeypatch.setenv("NO_COLOR", "")
        monkeypatch.setenv("TERM", "dumb")
        assert paint("x", "red", sys.stderr) == "x"


def test_progress_appears_late_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PROGRESS_DELAY_S", 0.0)
    monkeypatch.setattr(output, "PROGRESS_INTERVAL_S", 0.0)
    with terminal(monkeypatch) as reader:
        with progress("copying a.bin", total=4 << 20) as step:
            step(1 << 20)
            _shown(reader, "\r\x1b[Kcopying a.bin  1.0 MiB of 4.0 MiB, 25%")
        _shown(reader, "\r\x1b[K")


def test_progress_of_what_says_nothing_is_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PROGRESS_DELAY_S", 0.0)
    label = "waiting for the host " * 5
    with terminal(monkeypatch) as reader, progress(label):
        expected = "\r\x1b[K" + label[:39]
        assert _shown(reader, expected) == expected


def test_progress_that_ends_in_time_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as reader:
        with progress("quick", total=2) as step:
            step(1)
        notice("the only line")
        assert _shown(reader, "\n") == "codexctl: the only line\r\n"


def test_progress_without_a_terminal_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("copying", total=2) as step:
        step(2)
    assert capsys.readouterr() == ("", "")
