"""Keeps one `codex app-server` running: started when first needed, restarted with backoff.

    supervisor = Supervisor(start, on_lines, on_up, on_down)
    tasks.create_task(supervisor.run())
    server = await supervisor.server()      # starts it, waits until it is ready

The reason of the last end is kept and told. What waiting cannot mend (no codex) is told at once and
looked at again when somebody asks again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from codexctl import __version__
from codexctl.agent.appserver import AppServer, Broken, Line, Messages
from codexctl.agent.errors import AgentRefused, AgentUnavailable, NoCodex
from codexctl.errors import StateError

READY_S = 60.0  # from its start to the answer to initialize
WAIT_S = 30.0  # that a command waits for the app-server
PING_EVERY_S = 30.0
PING_S = 30.0
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 60.0
SOON_S = 5.0  # so long a command waits for the next start rather than being refused
STEADY_S = 60.0  # having lived so long, the next failure is the first

_log = logging.getLogger(__name__)

Start = Callable[[], AbstractAsyncContextManager[Messages]]


class Supervisor:
    """`start` gives the messages of an app-server and ends it when left.

    `on_up` is called when it has said hello, before anybody else may call it; `on_down` with the
    reason when it is gone.
    """

    def __init__(
        self,
        start: Start,
        on_lines: Callable[[list[Line]], None],
        on_up: Callable[[AppServer], Awaitable[None]],
        on_down: Callable[[str], None],
    ) -> None:
        self._start = start
        self._on_lines = on_lines
        self._on_up = on_up
        self._on_down = on_down
        self._wanted = asyncio.Event()
        self._changed = asyncio.Event()
        self._server: AppServer | None = None
        self._fault: AgentUnavailable | None = None
        self._hung = asyncio.Event()
        self.reason = ""  # of the last end
        self.restarts = 0

    @property
    def running(self) -> bool:
        return self._server is not None

    def want(self) -> None:
        """Have it started, if it is not."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled, which ends the app-server too or leaves it, as `start` decides."""
        failures = 0
        while True:
            await self._wanted.wait()
            began = time.monotonic()
            self._fault = None
            try:
                await self._one()
            except NoCodex as error:
                self._fault = error
                self._wanted.clear()  # the next command looks again
                self._change()
                continue
            except (Broken, AgentUnavailable) as error:
                self.reason = str(error)
                self._on_down(self.reason)
            failures = 1 if time.monotonic() - began >= STEADY_S else failures + 1
            self.restarts += 1
            delay = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 10))
            _log.warning("the app-server: %s; starting it again in %.1f s", self.reason, delay)
            if delay > SOON_S:
                self._fault = AgentUnavailable(
                    f"{self.reason}; it is started again in {delay:.0f} s",
                    hint="see: codexctl doctor",
                )
            self._change()
            await asyncio.sleep(delay)

    async def _one(self) -> None:
        """The life of one app-server. It ends in Broken, NoCodex or AgentUnavailable."""
        try:
            async with self._start() as messages:
                server = AppServer(messages, self._on_lines)
                self._hung.clear()
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(server.run())
                        tasks.create_task(self._watch(server))
                except* (Broken, AgentUnavailable) as group:
                    error: BaseException = group
                    while isinstance(error, BaseExceptionGroup):
                        error = error.exceptions[0]
                    raise Broken(str(error)) from error
        except OSError as error:
            raise Broken(f"it cannot be reached: {error}") from error
        finally:
            self._server = None

    async def _watch(self, server: AppServer) -> None:
        """Say hello, then see that it answers at all."""
        try:
            await server.call(
                "initialize",
                {
                    "clientInfo": {"name": "codexctl", "version": __version__},
                    "capabilities": {"experimentalApi": True},
                },
                timeout_s=READY_S,
            )
            await server.notify("initialized")
            await self._on_up(server)
        except TimeoutError:
            raise Broken(f"it did not answer within {READY_S:.0f} s of its start") from None
        except AgentRefused as error:
            raise Broken(f"it does not take a greeting: {error}") from error
        except StateError as error:
            raise Broken(f"what it was at cannot be kept: {error}") from error
        self._server = server
        self._change()
        while True:
            try:
                async with asyncio.timeout(PING_EVERY_S):
                    await self._hung.wait()
            except TimeoutError:
                pass
            try:
                await server.call("thread/loaded/list", {"limit": 1}, timeout_s=PING_S)
                self._hung.clear()
            except TimeoutError:
                raise Broken(f"it hangs: no answer within {PING_S:.0f} s") from None
            except AgentRefused:
                pass

    def suspect(self) -> None:
        """A call got no answer: find out now whether any does."""
        self._hung.set()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def server(self) -> AppServer:
        """The running app-server. AgentUnavailable says why there is none."""
        if self._server is None:
            if isinstance(self._fault, NoCodex):
                self._fault = None
            self._wanted.set()
            try:
                async with asyncio.timeout(WAIT_S):
                    while self._server is None:
                        if self._fault is not None:
                            raise self._fault
                        await self._changed.wait()
            except TimeoutError:
                raise AgentUnavailable(
                    f"the app-server is not ready after {WAIT_S:.0f} s",
                    hint="see: codexctl doctor",
                ) from None
        return self._server
