"""What a terminal shows: a grid of characters, a cursor, a region that scrolls, what scrolled away.

As much of a VT100 as full-screen programs of today use; colours and modes are read over.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"\x1b\[(?P<marks>[<=>?]?)(?P<numbers>[0-9;:]*)[ -/]*(?P<final>[@-~])"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and colours
    r"|\x1b[P_^X].*?\x1b\\"
    r"|\x1b(?P<escape>[ -/]*[0-~])"
    r"|(?P<control>[\x00-\x1a\x1c-\x1f\x7f])"
    r"|(?P<text>[^\x00-\x1f\x7f]+)",
    re.DOTALL,
)


class Screen:
    """Feed it what a program prints; `text` is all that was shown and still can be scrolled to."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._cells = [[" "] * columns for _ in range(rows)]
        self._gone: list[str] = []
        self._row = self._column = 0
        self._saved = (0, 0)
        self._top, self._bottom = 0, rows - 1
        self._rest = ""

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self._cells]

    @property
    def text(self) -> str:
        return "\n".join([*self._gone, *self.lines])

    def feed(self, data: str) -> None:
        """Part of what is printed; an unfinished sequence waits for its end."""
        self._rest += data
        at = 0
        while token := _TOKEN.match(self._rest, at):
            at = token.end()
            if token["text"]:
                for char in token["text"]:
                    self._put(char)
            elif token["control"]:
                self._control(token["control"])
            elif token["escape"]:
                self._escape(token["escape"])
            elif token["final"] and not token["marks"]:
                numbers = [int(n) if n.isdigit() else 0 for n in token["numbers"].split(";")]
                self._sequence(token["final"], numbers)
        self._rest = self._rest[at:]

    def _put(self, char: str) -> None:
        if self._column >= self.columns:
            self._column = 0
            self._down()
        self._cells[self._row][self._column] = char
        self._column += 1

    def _control(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._down()
        elif char == "\b":
            self._column = max(0, self._column - 1)
        elif char == "\t":
            self._column = min(self.columns - 1, self._column // 8 * 8 + 8)

    def _escape(self, name: str) -> None:
        if name == "M":  # reverse index
            if self._row == self._top:
                self._scroll(self._top, -1)
            else:
                self._row = max(0, self._row - 1)
        elif name in ("D", "E"):
            self._down()
        elif name == "7":
            self._saved = (self._row, self._column)
        elif name == "8":
            self._row, self._column = self._saved

    def _down(self) -> None:
        if self._row == self._bottom:
            self._scroll(self._top, 1)
        else:
            self._row = min(self.rows - 1, self._row + 1)

    def _scroll(self, top: int, lines: int) -> None:
        """Move the rows from `top` to the region's end up, or down where `lines` is negative."""
        for _ in range(min(abs(lines), self.rows)):
            if lines > 0:
                row = self._cells.pop(top)
                if top == 0:
                    self._gone.append("".join(row).rstrip())
                self._cells.insert(self._bottom, [" "] * self.columns)
            else:
                del self._cells[self._bottom]
                self._cells.insert(top, [" "] * self.columns)

    def _sequence(self, final: str, numbers: list[int]) -> None:
        first = numbers[0]
        count = max(1, first)
        row = self._cells[self._row]
        if final in "Hf":
            self._row = min(max(first - 1, 0), self.rows - 1)
            self._column = max((numbers[1] if len(numbers) > 1 else 1) - 1, 0)
        elif final == "A":
            self._row = max(0, self._row - count)
        elif final == "B":
            self._row = min(self.rows - 1, self._row + count)
        elif final == "C":
            self._column = min(self.columns - 1, self._column + count)
        elif final == "D":
            self._column = max(0, self._column - count)
        elif final == "G":
            self._column = min(self.columns, count) - 1
        elif final == "d":
            self._row = min(self.rows, count) - 1
        elif final == "K":
            start = self._column if first == 0 else 0
            stop = self._column + 1 if first == 1 else self.columns
            row[start:stop] = [" "] * (min(stop, self.columns) - start)
        elif final == "J":
            self._clear(first)
        elif final == "X":
            stop = min(self.columns, self._column + count)
            row[self._column : stop] = [" "] * (stop - self._column)
        elif final == "P":
            del row[self._column : self._column + count]
            row += [" "] * (self.columns - len(row))
        elif final == "@":
            row[self._column : self._column] = [" "] * count
            del row[self.columns :]
        elif final in "LM":
            self._scroll(self._row, -count if final == "L" else count)
        elif final in "ST":
            self._scroll(self._top, count if final == "S" else -count)
        elif final == "r":
            self._top = max(first - 1, 0)
            bottom = numbers[1] if len(numbers) > 1 and numbers[1] else self.rows
            self._bottom = min(bottom, self.rows) - 1
            self._row = self._column = 0

    def _clear(self, how: int) -> None:
        if how in (0, 1):
            self._sequence("K", [how])
        rows = {0: range(self._row + 1, self.rows), 1: range(self._row)}
        for index in rows.get(how, range(self.rows)):
            self._cells[index] = [" "] * self.columns
