"""Lengths of time as people type them (`90s`, `15m`, `8h`, `1d`, `1h30m`), in whole seconds."""

from __future__ import annotations

import re

from codexctl.errors import UsageError

MAX_DURATION_S = 100 * 365 * 86400  # a longer one is a typing mistake

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WHOLE = re.compile(r"(?:[0-9]{1,10}[smhdw])+", re.ASCII)
_PART = re.compile(r"([0-9]{1,10})([smhdw])", re.ASCII)
_HINT = "write it as 90s, 15m, 8h, 1d or 2w"


def parse_duration(text: str) -> int:
    """Seconds in `text`, at least 1. UsageError where it is not numbers with s, m, h, d or w."""
    compact = text.strip().lower()
    if not _WHOLE.fullmatch(compact):
        raise UsageError(f"{text!r} is not a duration", hint=_HINT)
    seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(compact))
    if seconds < 1:
        raise UsageError(f"the duration {text!r} is not longer than nothing", hint=_HINT)
    if seconds > MAX_DURATION_S:
        raise UsageError(f"the duration {text!r} is over a hundred years", hint=_HINT)
    return seconds


def format_duration(seconds: float) -> str:
    """The two largest units of a length of time: `1d 2h`, `5m`, `42s`; `0s` for less than one."""
    rest = max(0, int(seconds))
    parts: list[str] = []
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0s"
