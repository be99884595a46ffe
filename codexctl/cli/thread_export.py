"""`codexctl thread export`: a thread's conversation as a file."""

from __future__ import annotations

import sys

import click

from codexctl.cli.output import json_option, notice, progress, size_text
from codexctl.cli.thread_find import at_thread, complete_thread
from codexctl.errors import UsageError
from codexctl.paths import Home


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option("-o", "--output", metavar="FILE", help="A new file to write; stdout without it.")
@click.option(
    "--format", "form", type=click.Choice(("markdown", "jsonl")), default="markdown",
    show_default=True, help="jsonl is the official rollout file, byte for byte.",
)  # fmt: skip
@json_option
def export(thread: str, output: str | None, form: str, as_json: bool) -> None:
    """Save THREAD's conversation: as Markdown to read, or as the official rollout file.

    \b
        codexctl thread export 01a1fdb6 -o thread.md
        codexctl thread export 01a1fdb6 --format jsonl | gzip > rollout.jsonl.gz
    """
    from codexctl.cli.output import emit
    from codexctl.client.agent import read_bytes

    if output is None and as_json:
        raise UsageError("--json needs --output", hint="or --format jsonl for JSON on stdout")
    with at_thread(Home.from_env(), thread) as (connection, found):
        pieces = read_bytes(connection, "thread.export", {"thread": found["id"], "format": form})
        if output is None:
            sys.stdout.flush()
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        size = 0
        try:
            with open(output, "xb") as file, progress(f"exporting to {output}") as step:
                for piece in pieces:
                    file.write(piece)
                    size += len(piece)
                    step(size)
        except FileExistsError:
            raise UsageError(f"{output} exists already", hint="name another file") from None
    if not as_json:
        notice(f"{size_text(size)} written to {output}")
    else:
        emit({"thread": found["id"], "file": output, "bytes": size}, True)
