"""The agent of a host: one app-server for all devices, its events kept, its questions recorded.

    agent = Agent(home, host_name, login)
    tasks.create_task(agent.run())          # supervises; everything else is called beside it
    server = await agent.server()           # AgentUnavailable with the remedy
    await agent.changed()                   # something was appended to the events

What the app-server says goes to agent.db before anybody sees it, so that every device reads one
history from there, at its own pace, and a device that was away misses nothing. What codexctl itself
has to say goes there too, as methods that begin with `codexctl/`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakValueDictionary

from codexctl.agent import approvals
from codexctl.agent.approvals import Approval
from codexctl.agent.appserver import AppServer, Broken, Line, Messages
from codexctl.agent.codex import Codex, find_codex
from codexctl.agent.errors import AgentRefused, AgentUnavailable
from codexctl.agent.mode_order import JOINING
from codexctl.agent.process import Running, app_server, was_running
from codexctl.agent.questions import Event, Questions
from codexctl.agent.store import AgentStore, has_store
from codexctl.agent.supervisor import Supervisor
from codexctl.errors import StateError
from codexctl.host.environment import LoginEnvironment
from codexctl.paths import Home

Appended = tuple[str | None, "dict[str, Any] | Line"]
"""An event of a thread or of none: an official line as it came, or codexctl's own object."""

EXPIRE_EVERY_S = 30.0

_log = logging.getLogger(__name__)


class Agent:
    """One host's agent. Made before the event loop runs or in it; used in its thread alone."""

    def __init__(
        self,
        home: Home,
        host: str,
        login: Callable[[], Awaitable[LoginEnvironment]],
        caps: tuple[str, ...] = (),
    ) -> None:
        self.home = home
        self.host = host
        self.login = login
        self.caps = caps
        """The policy's bounds: an app-server that began under others is not taken over."""
        self.codex: Codex | None = None
        self.statuses: dict[str, dict[str, Any]] = {}
        """The official status of the threads that the app-server has loaded."""
        self.watching: Counter[tuple[str, str | None]] = Counter()
        """How often a device (its id) watches a thread, or all with None."""
        self.listeners: list[Callable[[str | None, dict[str, Any]], None]] = []
        """Called with the thread and the object of each event, after it was kept."""
        self.questions = Questions(lambda: self.store)
        self.supervisor = Supervisor(self._start, self._lines, self._up, self._down)
        self._store: AgentStore | None = None
        self._changed = asyncio.Event()
        self._running: Running | None = None
        self._joined: set[str] = set()  # threads whose events this connection gets
        self._others: set[str] = set()  # those of them that another client began
        self._tasks: asyncio.TaskGroup | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextmanager
    def watched_by(self, device: str, thread: str | None) -> Iterator[None]:
        """While a person at a device looks at a thread, or at all of them: see `watching`."""
        self.watching[device, thread] += 1
        try:
            yield
        finally:
            self.watching[device, thread] -= 1
            self.watching += Counter()  # drops those that are zero

    def lock(self, name: str) -> asyncio.Lock:
        """One at a time holds it, as who works in codexctl's folder of a thread."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    @property
    def store(self) -> AgentStore:
        """agent.db, opened when first needed. StateError."""
        if self._store is None:
            self._store = AgentStore(self.home)
        return self._store

    async def run(self) -> None:
        """Supervise until cancelled. What an earlier daemon left undone is ended first."""
        if was_running(self.home):
            self.supervisor.want()
        elif has_store(self.home):
            self._down("it was gone when the host started")
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self.supervisor.run())
                tasks.create_task(self._expire())
        finally:
            self._tasks = None
            if self._store is not None:
                self._store.close()
                self._store = None

    async def server(self) -> AppServer:
        """The app-server, started if need be. AgentUnavailable says why there is none."""
        return await self.supervisor.server()

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """One call, checked against the binary's own schema. AgentRefused, AgentUnavailable."""
        server = await self.server()
        assert self.codex is not None, "it is known before its app-server runs"
        self.codex.check_request(method, params)
        try:
            result = await server.call(method, params)
        except TimeoutError:
            self.supervisor.suspect()
            raise AgentUnavailable(
                f"the app-server gave no answer to {method}", hint="see: codexctl doctor"
            ) from None
        if method in JOINING:
            self._joined.add(str(_member(result, "thread", "id")))
        return result

    async def socket(self) -> str:
        """The path of the app-server's socket, for clients of their own. AgentUnavailable."""
        await self.server()
        if self._running is None:
            raise AgentUnavailable("the app-server has just ended", hint="try again")
        return self._running.socket

    # --- the app-server's life ---

    @asynccontextmanager
    async def _start(self) -> AsyncIterator[Messages]:
        login = await self.login()
        codex = await asyncio.to_thread(
            find_codex, self.home, login.path, login.variables, self.host
        )
        self.codex = codex
        async with app_server(self.home, codex, login, self.caps) as running:
            self._running = running
            try:
                yield running.messages
            except Broken as error:
                words = running.last_words()
                raise Broken(f"{error}{': ' if words else ''}{words}") from error
            except asyncio.CancelledError:
                # The daemon ends. What runs or waits is for the next one to take over.
                running.keep = bool(self._unfinished() or self.pending())
                raise
            finally:
                self._running = None

    async def _up(self, server: AppServer) -> None:
        """Take over what an earlier daemon left, or end what a lost app-server left."""
        running = self._running
        assert running is not None
        self._joined.clear()
        self._others.clear()
        if not running.taken_over:
            self._lost("the app-server that asked is gone")
            return
        answer = await server.call("thread/loaded/list", {})
        for thread in answer.get("data") or ():
            await self._rejoin(server, str(thread))
        # What it asks again stands before the answer to this.
        await server.call("thread/loaded/list", {"limit": 1})

    async def _rejoin(self, server: AppServer, thread: str) -> None:
        """Follow a thread again that went on while no daemon was there."""
        self._joined.add(thread)
        # What it asks now, it asks again of whoever joins.
        answer = await server.call("thread/resume", {"threadId": thread, "excludeTurns": True})
        status = _member(answer, "thread", "status") or {}
        self.statuses[thread] = status
        self.learn_settings(thread, answer.get("sandbox"), answer)
        events: list[Appended] = []
        if not status.get("activeFlags"):
            events += self.questions.end_thread(thread, "the agent went on without")
        turn = self.store.facts(thread).get("turn")
        if turn and status.get("type") != "active":
            found = await server.call("thread/turns/list", {"threadId": thread, "limit": 1})
            for last in found.get("data") or ():
                self.store.learn(thread, turn=None, last_turn=last.get("status"))
                events.append((thread, _own("turn/completed", threadId=thread, turn=last)))
        self.append(events)

    def _unfinished(self) -> list[str]:
        """Threads in which a turn runs."""
        return [id for id, facts in self.store.all_facts().items() if facts.get("turn")]

    def _down(self, reason: str) -> None:
        self.statuses.clear()
        try:
            self._lost(f"the app-server ended: {reason}")
        except StateError as error:
            _log.error("what the app-server was at cannot be kept: %s", error)

    def _lost(self, reason: str) -> None:
        """End what an app-server was at when it went away."""
        events: list[Appended] = [*self.questions.end_all(reason)]
        for thread in self._unfinished():
            events.append((thread, _own("codexctl/agent/ended", message=reason)))
            self.store.learn(thread, turn=None, last_turn="interrupted")
        self.append(events)

    # --- events ---

    def append(self, events: list[Appended]) -> None:
        """Keep events and wake whoever follows: official lines as they are, or own objects."""
        if not events:
            return
        self.store.append(
            [
                (
                    thread,
                    event.raw
                    if isinstance(event, Line)
                    else json.dumps(event, separators=(",", ":")),
                )
                for thread, event in events
            ]
        )
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self.listeners:
            for thread, event in events:
                listener(thread, event.value if isinstance(event, Line) else event)

    async def changed(self, after: int) -> None:
        """Return when there is an event behind this cursor."""
        while self.store.last <= after:
            await self._changed.wait()

    def _lines(self, lines: list[Line]) -> None:
        try:
            self._take(lines)
        except StateError as error:
            # A full disk takes neither the daemon down nor the thread, which the rollout has too.
            _log.error("events of the app-server were lost: %s", error)

    def _take(self, lines: list[Line]) -> None:
        events: list[Appended] = []
        for line in lines:
            params = line.value.get("params")
            if not isinstance(params, dict):
                params = {}
            if "id" in line.value:
                events += self._asked(line.value, params)
                continue
            thread = _thread_of(params)
            events.append((thread, line))
            if thread is not None:
                events += self._follow(str(line.value["method"]), thread, params)
        self.append(events)

    def _follow(self, method: str, thread: str, params: dict[str, Any]) -> list[Event]:
        """Learn from a notification what codexctl itself has to know; what it has to say to it."""
        if method == "thread/status/changed":
            status = self.statuses[thread] = params.get("status") or {}
            if status.get("type") == "active" and thread not in self._joined:
                # Another client began it: from here on its events and questions come here too.
                self._joined.add(thread)
                self._others.add(thread)
                self._later(lambda server: self._rejoin(server, thread))
        elif method == "turn/started":
            self.store.learn(thread, turn=_member(params, "turn", "id"), last_turn=None)
        elif method == "turn/completed":
            status = _member(params, "turn", "status")
            self.store.learn(thread, turn=None, last_turn=status)
            turn = _member(params, "turn", "id")
            return self.questions.end_turn(thread, turn, f"the turn was {status}")
        elif method == "thread/name/updated":
            self.store.learn(thread, name=params.get("threadName"))
        elif method == "thread/settings/updated":
            settings = params.get("threadSettings") or {}
            self.learn_settings(thread, settings.get("sandboxPolicy"), settings)
        elif method == "serverRequest/resolved":
            return self.questions.resolved(thread, params.get("requestId"))
        elif method == "item/started" and _member(params, "item", "type") == "fileChange":
            self.questions.change(thread, params["item"].get("id"), params["item"].get("changes"))
        elif method == "item/fileChange/patchUpdated":
            self.questions.change(thread, params.get("itemId"), params.get("changes"))
        elif method == "item/completed":
            self.questions.changed(thread, _member(params, "item", "id"))
        elif method == "thread/closed":
            self.statuses.pop(thread, None)
            self._joined.discard(thread)
            self._others.discard(thread)
        return []

    def learn_settings(self, thread: str, sandbox: Any, settings: dict[str, Any]) -> None:
        """Keep what the app-server says that a thread may do."""
        mode = SANDBOX_MODES.get(str(sandbox.get("type"))) if isinstance(sandbox, dict) else None
        self.store.learn(
            thread,
            sandbox=mode or "unknown",
            approval=settings.get("approvalPolicy"),
            model=settings.get("model"),
            cwd=settings.get("cwd"),
        )

    # --- what it asks of people ---

    def pending(self) -> list[Approval]:
        return self.questions.pending()

    def _asked(self, request: dict[str, Any], params: dict[str, Any]) -> list[Event]:
        method, id = str(request["method"]), request["id"]
        if method in approvals.KINDS:
            return self.questions.asked(method, id, params)
        if _thread_of(params) in self._others:
            return []  # whoever began that thread may be able to
        _log.warning("the app-server asked for %s, which nobody here can do", method)
        self._later(lambda server: server.refuse(id, f"codexctl does not serve {method}"))
        return []

    async def answer(self, server: AppServer, ended: Approval, response: dict[str, Any]) -> None:
        """Keep the decision, then tell the app-server. AgentUnavailable: it did not get it.

        Nobody else comes between: it is kept before this waits for anything.
        """
        self.append([*self.questions.answered(ended)])
        try:
            await server.respond(ended.request_id, response)
        except AgentUnavailable:
            self.append([*self.questions.untold(ended)])
            raise

    def _later(self, act: Callable[[AppServer], Awaitable[None]]) -> None:
        """Write to the app-server from where nothing may wait."""

        async def run() -> None:
            try:
                await act(await self.server())
            except (AgentUnavailable, AgentRefused, TimeoutError) as error:
                _log.warning("%s", error)

        if self._tasks is not None:
            self._tasks.create_task(run())

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            if self._store is not None:
                try:
                    self._expire_now()
                except StateError as error:
                    _log.error("approvals that have expired cannot be kept: %s", error)

    def _expire_now(self) -> None:
        events, responses = self.questions.expired()
        self.append([*events])
        for approval, response in responses:
            self._later(
                lambda server, id=approval.request_id, r=response: server.respond(id, r)  # type: ignore[misc]
            )


SANDBOX_MODES = {
    "readOnly": "read-only",
    "workspaceWrite": "workspace-write",
    "dangerFullAccess": "danger-full-access",
    "externalSandbox": "external",
}


def _own(method: str, **params: Any) -> dict[str, Any]:
    return {"method": method, "params": params}


def _thread_of(params: dict[str, Any]) -> str | None:
    thread = params.get("threadId") or _member(params, "thread", "id")
    return thread if isinstance(thread, str) else None


def _member(params: dict[str, Any], *path: str) -> Any:
    value: Any = params
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
