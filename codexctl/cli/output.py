"""What a command says: results on stdout as table or JSON, everything else on stderr.

One frozen record (a NamedTuple, dataclass or mapping) feeds both the table and `--json`:

    @json_option
    def hosts(as_json: bool) -> None:
        emit(records, as_json, table=("name", "transport", "online"))

Importing this module imports neither click nor rich.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, TypeVar

from codexctl.errors import CodexctlError, Interrupted, UsageError
from codexctl.secret import Secret

F = TypeVar("F", bound=Callable[..., Any])

PROGRESS_DELAY_S = 1.0  # nothing is said about what is quicker
PROGRESS_INTERVAL_S = 0.1
COLOURS = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}


def json_option(function: F) -> F:
    """`--json`, passed to the command as `as_json`."""
    import click

    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def yes_option(function: F) -> F:
    """`--yes`, passed to the command as `yes`; give it to `confirm`."""
    import click

    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(function)


def emit(
    value: object,
    as_json: bool,
    *,
    table: Sequence[str] | None = None,
    text: str | None = None,
    empty: str = "",
) -> None:
    """Print a record, or a list of records, to stdout.

    As JSON: an object or an array. As text: `text` where given; else a list becomes a table with
    the columns `table` (all fields of the first record without it), a record becomes lines of
    `name: value`. For an empty list nothing is printed but the notice `empty` on stderr.
    """
    if as_json:
        sys.stdout.write(json.dumps(as_plain(value), ensure_ascii=False, indent=2) + "\n")
    elif text is not None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_asdict"):
        rows = [as_plain(record) for record in value]
        if rows:
            sys.stdout.write(format_table(rows, table or list(rows[0])))
        elif empty:
            notice(empty)
    else:
        record = as_plain(value)
        width = max(map(len, record)) + 2
        for name in table or record:
            sys.stdout.write(f"{_label(name) + ':':<{width}}{cell(record[name])}\n")
    sys.stdout.flush()


def emit_line(value: object) -> None:
    """One JSON object on a line of its own, at once: for events of a command that stays."""
    sys.stdout.write(json.dumps(as_plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def as_plain(value: Any) -> Any:
    """Records, sets and paths as what JSON knows; a Secret stays hidden."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return as_plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (set, frozenset)):
        return sorted(as_plain(item) for item in value)
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [as_plain(item) for item in value]
    if isinstance(value, (Secret, os.PathLike)):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Aligned columns under upper-case headings, one row a line."""
    cells = [[_label(name).upper() for name in columns]]
    cells += [[cell(row[name]) for name in columns] for row in rows]
    widths = [max(_width(line[at]) for line in cells) for at in range(len(columns))]
    out = []
    for line in cells:
        padded = [
            text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True)
        ]
        out.append("  ".join(padded).rstrip() + "\n")
    return "".join(out)


def cell(value: Any) -> str:
    """A value as a person reads it in a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={cell(item)}" for name, item in value.items()) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """Control characters shown, not obeyed: a name from elsewhere cannot drive the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _label(name: str) -> str:
    return name.replace("_", " ")


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def notice(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"codexctl: {printable(text)}\n")
    sys.stderr.flush()


def print_error(error: CodexctlError, *, as_json: bool = False) -> None:
    """The sentence and the hint on stderr, or the error's JSON object as one line there."""
    if as_json:
        sys.stderr.write(json.dumps(error.as_json(), ensure_ascii=False) + "\n")
        return
    head = paint("codexctl:", "red", sys.stderr)
    sys.stderr.write(f"{head} {printable(error.message)}\n")
    if error.hint:
        # A hint may be several lines: the commands to run, one below the other.
        lines = [printable(line) for line in error.hint.splitlines()]
        sys.stderr.write(f"{paint('hint:', 'cyan', sys.stderr)} " + "\n      ".join(lines) + "\n")


def colour_wanted(stream: IO[str]) -> bool:
    """Colour goes to a terminal that has it, unless NO_COLOR is set (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: IO[str]) -> str:
    if not colour_wanted(stream):
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def confirm(question: str, *, yes: bool = False, default: bool = False) -> bool:
    """Ask on the terminal. `yes` answers at once; without a terminal it is a usage error.

    Ctrl-C and Ctrl-D raise Interrupted (130); the caller has changed nothing before it asks.
    """
    if yes:
        return True
    while True:
        answer = ask(f"{question} [{'Y/n' if default else 'y/N'}]", hint="add --yes to agree")
        if not answer:
            return default
        if answer.lower() in ("y", "yes", "n", "no"):
            return answer.lower().startswith("y")
        sys.stderr.write("please answer y or n\n")


def ask(question: str, *, hint: str = "", hidden: bool = False) -> str:
    """A line from the terminal, stripped; not echoed if `hidden`. `hint` is for no terminal."""
    if not sys.stdin.isatty():
        raise UsageError(f"cannot ask '{printable(question)}': stdin is not a terminal", hint=hint)
    from codexctl.client.prompt import read_line

    try:
        return read_line(f"{printable(question)} ", hidden=hidden).strip()
    except (KeyboardInterrupt, EOFError):
        sys.stderr.write("\n")
        raise Interrupted("interrupted before an answer, nothing was changed") from None


class progress:
    """A line about what takes long, on a terminal alone, from one second on, removed at the end.

        with progress("copying a.bin", total=size) as step:
            step(bytes_so_far)

    Without `total` the line is the label; it appears by itself, also when `step` is never called.
    """

    def __init__(self, label: str, *, total: int | None = None) -> None:
        self._label, self._total = printable(label), total
        self._shown = False
        self._next = 0.0

    def __enter__(self) -> progress:
        self._wanted = sys.stderr.isatty()
        if self._wanted:
            from threading import Timer

            self._next = time.monotonic() + PROGRESS_DELAY_S
            self._timer = Timer(PROGRESS_DELAY_S, self._draw, (None,))
            self._timer.daemon = True
            self._timer.start()
        return self

    def __call__(self, done: int, label: str | None = None) -> None:
        """So much is done; cheap enough for every block."""
        if label is not None:
            self._label = printable(label)
        if self._wanted and time.monotonic() >= self._next:
            self._timer.cancel()
            self._next = time.monotonic() + PROGRESS_INTERVAL_S
            self._draw(done)

    def _draw(self, done: int | None) -> None:
        line = self._label
        if done is not None:
            line += f"  {size_text(done)}"
            if self._total:
                line += f" of {size_text(self._total)}, {100 * done // self._total}%"
        width = max(os.get_terminal_size(sys.stderr.fileno()).columns - 1, 10)
        sys.stderr.write(f"\r\x1b[K{line[:width]}")
        sys.stderr.flush()
        self._shown = True

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            self._timer.cancel()
            # It may be drawing at this moment; what it draws is removed below.
            self._timer.join()
            if self._shown:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()


def size_text(size: int) -> str:
    """Bytes for a person: 512 B, 1.5 KiB, 200.0 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
