"""A terminal of unlimited height that knows what the painter writes, and refuses all else."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
_BLANK = ("", " ")


class Screen:
    """Rows of cells: the colours in force, and a character."""

    def __init__(self) -> None:
        self._rows: list[list[tuple[str, str]]] = [[]]
        self._row = self._column = 0
        self._colours = ""

    def feed(self, data: str) -> None:
        at = 0
        while at < len(data):
            token = _TOKEN.match(data, at)
            assert token is not None, f"not known here: {data[at : at + 20]!r}"
            at = token.end()
            number, final, control, text = token.groups()
            row = self._rows[self._row]
            if control == "\r":
                self._column = 0
            elif control == "\n":
                self._row += 1
                while self._row >= len(self._rows):
                    self._rows.append([])
            elif text:
                row += [_BLANK] * (self._column - len(row))
                end = self._column + len(text)
                row[self._column : end] = [(self._colours, char) for char in text]
                self._column = end
            elif final == "m":
                self._colours = "" if number in ("", "0") else self._colours + token.group()
            elif final == "A":
                self._row -= int(number or 1)
                assert self._row >= 0, "above the first row"
            elif final == "K":
                del row[self._column :]
            elif final == "J":
                del row[self._column :]
                del self._rows[self._row + 1 :]
            else:
                assert final in "hl", f"not known here: {token.group()!r}"

    def lines(self) -> list[str]:
        """The text of all rows above the cursor's."""
        return ["".join(char for _, char in row) for row in self._rows[: self._row]]

    def coloured(self) -> list[str]:
        """The same with the colours of each character."""
        out = []
        for row in self._rows[: self._row]:
            text, before = "", ""
            for colours, char in row:
                text += char if colours == before else f"\x1b[0m{colours}{char}"
                before = colours
            out.append(text + "\x1b[0m")
        return out
