"""A terminal of unlimited height that knows what the painter writes, and refuses all else."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    def __init__(self, width: int) -> None:
        self.width = width
        self._rows: list[str] = [""]
        self._row = self._column = 0

    def feed(self, data: str) -> None:
        at = 0
        while at < len(data):
            token = _TOKEN.match(data, at)
            assert token is not None, f"not known here: {data[at : at + 20]!r}"
            at = token.end()
            number, final, control, text = token.groups()
            if control == "\r":
                self._column = 0
            elif control == "\n":
                self._row += 1
                while self._row >= len(self._rows):
                    self._rows.append("")
            elif text:
                row = self._rows[self._row].ljust(self._column)
                self._rows[self._row] = row[: self._column] + text + row[self._column + len(text) :]
                self._column += len(text)
            elif final == "A":
                self._row -= int(number or 1)
                assert self._row >= 0, "above the first row"
            elif final == "K":
                self._rows[self._row] = self._rows[self._row][: self._column]
            elif final == "J":
                self._rows[self._row] = self._rows[self._row][: self._column]
                del self._rows[self._row + 1 :]
            else:
                assert final in "hlm", f"not known here: {token.group()!r}"

    def lines(self) -> list[str]:
        """All rows above the cursor's."""
        return self._rows[: self._row]
