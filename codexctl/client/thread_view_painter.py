"""A terminal that shows lines that stay and, below them, a few that still change.

`Painter.frame` gives the bytes of one update and touches nothing itself. What stays is written once
and scrolls away as any output does. Of what changes only the lines that differ are written again,
and all of an update is one write between the marks of synchronized output, so nothing flickers:
no line is blank for a moment, and terminals that know the marks show it whole.
"""

from __future__ import annotations

from collections.abc import Sequence

BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
_ERASE_LINE = "\x1b[K"
_ERASE_BELOW = "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"


class Painter:
    """The lower lines of one terminal; the cursor rests at the start of the line below them."""

    def __init__(self) -> None:
        self._live: list[str] = []

    def frame(self, stays: Sequence[str], live: Sequence[str]) -> str:
        """Show `stays` for good, and `live` below in place of the last ones. Empty: no change."""
        if not stays and list(live) == self._live:
            return ""
        before, self._live = self._live, list(live)
        out = [BEGIN, _NO_WRAP]
        if before:
            out.append(f"\x1b[{len(before)}A")
        wanted = [*stays, *live]
        for at, line in enumerate(wanted):
            same = not stays and at < len(before) and before[at] == line
            out.append("\r\n" if same else f"\r{line}{_ERASE_LINE}\r\n")
        if len(before) > len(wanted):
            out.append(_ERASE_BELOW)
        out += [_WRAP, END]
        return "".join(out)

    def forget(self) -> str:
        """Remove what changes: before the end, and when the terminal's width is another one.

        Lines are written without wrapping, so each is one row, whatever the width became.
        """
        count, self._live = len(self._live), []
        return f"{BEGIN}\x1b[{count}A\r{_ERASE_BELOW}{END}" if count else ""
