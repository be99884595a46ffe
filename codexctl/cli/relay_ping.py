"""`codexctl relay ping`: whether a relay answers, how fast, which version, and its clock."""

from __future__ import annotations

import click

from codexctl.cli.output import emit, json_option


@click.command()
@click.argument("url")
@click.option("--pin", default="", help="The pin of a self-signed relay (p= of its pairing URL).")
@click.option("--count", default=5, show_default=True, type=click.IntRange(1, 100), help="Calls.")
@json_option
def ping(url: str, pin: str, count: int, as_json: bool) -> None:
    """Ask the relay at URL for its health: latency, version, difference of the clocks."""
    from codexctl.relay.ping import ping as ask

    answer = ask(url, pin=pin, count=count)
    skew = "none" if not answer.clock_skew_s else f"{answer.clock_skew_s:+d} s"
    text = (
        f"{url}: {answer.status}, version {answer.version}, "
        f"{answer.latency_ms:g} ms (best {answer.best_ms:g}), clock difference {skew}"
    )
    emit(answer, as_json, text=text)
