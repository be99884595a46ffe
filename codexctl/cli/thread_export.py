"""`codexctl thread export`: a thread's conversation as a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from codexctl.cli.output import emit, json_option, progress, size_text
from codexctl.cli.thread_find import at_thread, complete_thread
from codexctl.errors import UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.connection import Connection


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option("-o", "--output", metavar="FILE", help="A new file to write; stdout without it.")
@click.option(
    "--format", "form", type=click.Choice(("markdown", "jsonl")), default="markdown",
    show_default=True, help="jsonl is the thread and its turns, as the app-server has them.",
)  # fmt: skip
@json_option
def export(thread: str, output: str | None, form: str, as_json: bool) -> None:
    """Save THREAD's whole conversation: as Markdown to read, or as JSON lines.

    \b
        codexctl thread export 01a1fdb6 -o thread.md
        codexctl thread export 01a1fdb6 --format jsonl | gzip > thread.jsonl.gz
    """
    if output is None and as_json:
        raise UsageError("--json needs --output", hint="or --format jsonl for JSON on stdout")
    with at_thread(Home.from_env(), thread) as (connection, found):
        pieces = _pieces(connection, str(found["id"]), form)
        if output is None:
            sys.stdout.flush()
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        size = _write(output, pieces)
    record = {"thread": found["id"], "file": output, "bytes": size}
    emit(record, as_json, text=f"{size_text(size)} written to {output}")


def _pieces(connection: Connection, thread: str, form: str) -> Iterator[bytes]:
    from codexctl.client.agent import read_bytes, stream
    from codexctl.client.thread_export import markdown

    if form == "jsonl":
        yield from read_bytes(connection, "thread.export", {"thread": thread})
        return
    for text in markdown(stream(connection, "thread.export", {"thread": thread})):
        yield text.encode(errors="replace")


def _write(path: str, pieces: Iterator[bytes]) -> int:
    size = 0
    try:
        with open(path, "xb") as file, progress(f"exporting to {path}") as step:
            for piece in pieces:
                file.write(piece)
                size += len(piece)
                step(size)
    except FileExistsError:
        raise UsageError(f"{path} exists already", hint="name another file") from None
    return size
