"""A host that runs `codexctl up`, and devices beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import Machine, Running, pair


class Pair:
    """A running host and one device that is paired with it under the name `box`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = Machine(folder / "host")
        self.device = Machine(folder / "device")
        self.up = self.host.start("up", "--json", "--listen", "127.0.0.1:0", "--name", "box")
        self.relay: str = self.up.event("ready")["relay"]

    def paired(self) -> Pair:
        assert pair(self.up, self.device) == "box"
        return self

    def offer(self, *options: str) -> dict[str, str]:
        """A new pairing offer of the running host."""
        import json

        offer: dict[str, str] = json.loads(
            self.host.run("pair", "--show", "--json", *options).stdout
        )
        return offer

    def restart(self) -> Running:
        """Stop and start the host on the same port."""
        self.up.__exit__(None, None, None)
        listen = self.relay.removeprefix("http://")
        self.up = self.host.start("up", "--json", "--listen", listen, "--name", "box")
        self.up.event("ready")
        return self.up


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Pair]:
    """A running host that nobody is paired with."""
    made = Pair(tmp_path)
    try:
        yield made
    finally:
        made.up.__exit__(None, None, None)


@pytest.fixture
def box(host: Pair) -> Pair:
    """A running host and its paired device."""
    return host.paired()
