"""A thread on standard output: on a terminal with what still changes below, else line by line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from codexctl.client.connection import Connection
from codexctl.client.process import terminal_size
from codexctl.client.thread_follow import DROPPED, REPLAYED
from codexctl.client.thread_view import Block, ThreadView
from codexctl.client.thread_view_painter import Painter
from codexctl.client.thread_view_render import lines, live_lines

PAINT_EVERY_S = 0.03  # at most, so that a burst of events is a few pictures
TICK_S = 1.0
SHOWN_OF_REPLAY = 40  # blocks of what was before, unless all is asked for
PLAIN_WIDTH = 100  # columns where there is no terminal


class Screen:
    """Shows what a view is fed. Use it as a context manager: leaving it leaves a clean terminal."""

    def __init__(
        self, view: ThreadView, title: str, *, colour: bool, full: bool = False, all: bool = False
    ) -> None:
        self._view = view
        self._title = title
        self._colour = colour
        self._full = full
        self._all = all
        self._out: IO[str] = sys.stdout
        self._live = self._out.isatty() and os.environ.get("TERM") != "dumb"
        self._painter = Painter()
        self._width = 0
        self._replaying = True
        self._waiting: list[Block] = []  # of the replay, until its end
        self._connection: Connection | None = None
        self._due = False
        self._painted_at = 0.0

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._replaying = False
        self._paint()
        if self._live:
            self._write(self._painter.forget())

    def attach(self, connection: Connection) -> None:
        """Use this connection's loop for what changes by itself: elapsed time, the width."""
        self._connection = connection
        self._due = False
        if self._live:
            self._tick()

    def event(self, event: Mapping[str, Any]) -> None:
        """Show what the view has made of an event it was just fed."""
        method = event.get("method")
        if method == DROPPED:
            self._waiting.append(Block("notice", text="earlier events are no longer kept"))
        self._waiting += self._view.take()
        if self._replaying:
            if not self._all and len(self._waiting) > 2 * SHOWN_OF_REPLAY:
                self._cut()
            if method != REPLAYED:
                return
            self._cut()
            self._replaying = False
        self._soon()

    def _cut(self) -> None:
        """Of a long replay keep the end."""
        if not self._all and len(self._waiting) > SHOWN_OF_REPLAY:
            text = "there is more before this: --all"
            self._waiting = [
                Block("notice", text=text, state="done"),
                *self._waiting[-SHOWN_OF_REPLAY:],
            ]

    def _soon(self) -> None:
        if not self._live or self._connection is None:
            self._paint()
        elif not self._due:
            self._due = True
            wait = max(0.0, self._painted_at + PAINT_EVERY_S - time.monotonic())
            self._connection.call_after(wait, self._paint)

    def _tick(self) -> None:
        if not self._replaying:
            self._paint()
        assert self._connection is not None
        self._connection.call_after(TICK_S, self._tick)

    def _paint(self) -> None:
        self._due = False
        if self._replaying:
            return
        self._painted_at = time.monotonic()
        blocks, self._waiting = self._waiting, []
        if not self._live:
            shown = lines(blocks, PLAIN_WIDTH, colour=self._colour, full=self._full)
            self._write("".join(f"{line}\n" for line in shown))
            return
        columns, rows = terminal_size()
        if columns != self._width and self._width:
            self._write(self._painter.forget())
        self._width = columns
        stays = lines(blocks, columns, colour=self._colour, full=self._full)
        changing = live_lines(
            self._view,
            columns,
            max(rows - 1, 1),
            now_ms=time.time_ns() // 1_000_000,
            colour=self._colour,
            title=self._title,
        )
        self._write(self._painter.frame(stays, changing))

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
