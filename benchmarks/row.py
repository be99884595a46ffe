"""One line of the table that `./dev bench` prints."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A measured value with what it must and what it aims to be.

    `must` and `aim` are written as in the table, such as `>= 0.9` or `<= 40`; `unit` is empty for
    ratios. Rows that explain others have neither.
    """

    metric: str
    value: float
    must: str = ""
    aim: str = ""
    unit: str = ""
