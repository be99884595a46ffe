"""A device's session with an official executor: JSON-RPC, one poll loop, channels for processes.

    with ExecutorConnection.open(record) as connection:
        connection.call("fs/getMetadata", {"path": "file:///etc/hosts"})

To `run_command` and `run_terminal` it is what a `Connection` is: descriptors are watched, handlers
called, from inside `run`. When the path breaks the executor keeps its session for a while: `run`
gets another path, resumes the session and asks again what was not answered; the processes say what
they have missed. An executor that was started anew has ended them, and that is raised.
"""

from __future__ import annotations

import os
import posixpath
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from codexctl.client.connection import BACKOFF_FIRST_S, BACKOFF_MOST_S, ChannelHandler
from codexctl.client.executor.environment import Environment, parse_environment
from codexctl.client.executor.handshake import Way, open_way
from codexctl.client.executor.process import ProcessChannel
from codexctl.client.executor.stream import StreamReset
from codexctl.client.store import HostRecord
from codexctl.errors import (
    AuthenticationFailed,
    CodexctlError,
    ConnectionFailed,
    NotFoundOnHost,
    ProtocolError,
    Refused,
)
from codexctl.noise.hybrid import HybridKey
from codexctl.session.records import SessionOver

# The executor resets a stream whose requests it cannot queue; its queue holds 128.
MAX_REQUESTS = 32
CALL_TIMEOUT_S = 30.0
COUNT_FROM_ONE_AFTER_S = 3.0
RESUME_WITHIN_S = 25.0  # an executor keeps a session without a path for some 30 s
ACK_DELAY_S = 0.1  # some versions send again what is not acknowledged in 0.5 s
PROBE_AFTER_S = 5.0  # of silence
DEAD_AFTER_S = 15.0
# Output that its reader has not taken; then the socket is not read, and the relay waits.
MAX_UNREAD_BYTES = 32 << 20
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR
_GONE = select.POLLHUP | select.POLLERR
_INVALID_PARAMS, _NOT_FOUND = -32602, -32004

Done = Callable[[dict[str, Any] | None, CodexctlError | None], None]


class _Request(NamedTuple):
    method: str
    params: dict[str, Any]
    done: Done


class NoSuchFile(CodexctlError):
    """A path that is not there."""

    code = "no-such-file"


class ExecutorLost(ConnectionFailed):
    """The executor was started anew or has forgotten this session: what ran in it has ended."""

    code = "session-over"


class ExecutorConnection:
    """A live session. Use it as a context manager; leaving it ends what runs in it."""

    def __init__(self, record: HostRecord, notice: Callable[[str], None]) -> None:
        self.record = record
        self.notice = notice
        self.environment = Environment("", "", "/", "", "", True, False)
        self._key = HybridKey.generate()
        self._way: Way | None = None
        self._registration_id = ""
        self._session_id = ""
        self._requests: dict[int, _Request] = {}
        self._queue: deque[tuple[int, _Request]] = deque()
        self._next_id = 1
        self._processes: dict[str, ProcessChannel] = {}
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._heard = 0.0
        self._probing = False
        self._unread = 0
        self._mask = 0
        self._ack_due = False

    @classmethod
    def open(
        cls, record: HostRecord, notice: Callable[[str], None] = lambda text: None
    ) -> ExecutorConnection:
        """Connect, shake hands, initialize. ConnectionFailed and its kinds where that fails."""
        connection = cls(record, notice)
        try:
            connection._attach()
        except BaseException:
            connection.close()
            raise
        return connection

    def __enter__(self) -> ExecutorConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; the executor ends the session's processes. Harmless when closed."""
        for channel in list(self._processes.values()):
            channel.close()
        if self._way is not None:
            try:
                self._flush()
            except OSError:
                pass
        self._drop_path()

    # --- requests ---

    def submit(self, method: str, params: dict[str, Any], done: Done) -> None:
        """Ask; `done(result, error)` is called once from inside `run`."""
        request = _Request(method, params, done)
        number, self._next_id = self._next_id, self._next_id + 1
        if len(self._requests) < MAX_REQUESTS:
            self._ask(number, request)
        else:
            self._queue.append((number, request))

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Ask and wait; the result, or the error raised."""
        answers: list[tuple[dict[str, Any] | None, CodexctlError | None]] = []
        self.submit(method, params, lambda result, error: answers.append((result, error)))
        self.run(lambda: bool(answers))
        result, failure = answers[0]
        if failure is not None:
            raise failure
        return result or {}

    def path(self, path: str) -> str:
        """An absolute path as this version of the executor takes it."""
        if not self.environment.urls:
            return path
        from urllib.parse import quote

        return "file://" + quote(path)

    def absolute(self, path: str) -> str:
        """A path there: below the executor's folder where it is relative, `~/` a person's home."""
        if path == "~" or path.startswith("~/"):
            path = (self.environment.home or "/") + path[1:]
        return posixpath.normpath(posixpath.join(self.environment.cwd, path))

    def channel(self, kind: str, params: dict[str, Any], handler: ChannelHandler) -> ProcessChannel:
        """A process, as `Connection.channel` opens one; kinds are exec and pty."""
        channel = ProcessChannel(self, kind, params, handler)
        self._processes[channel.process_id] = channel
        # Begun by `run`: a caller that closes stdin at once gets a process that has none.
        self.call_after(0, channel.begin)
        return channel

    def forget(self, channel: ProcessChannel) -> None:
        self._processes.pop(channel.process_id, None)

    def count_unread(self, size: int) -> None:
        """So many more bytes of output (fewer, below 0) wait for their reader."""
        self._unread += size

    def _ask(self, number: int, request: _Request) -> None:
        self._requests[number] = request
        if self._way is not None:
            self._send(number, request)

    def _send(self, number: int, request: _Request) -> None:
        assert self._way is not None
        self._way.stream.send({"id": number, "method": request.method, "params": request.params})

    # --- descriptors and timers ---

    def watch(
        self,
        fd: int,
        on_readable: Callable[[], None] | None = None,
        on_writable: Callable[[], None] | None = None,
    ) -> None:
        """Call back when `fd` can be read (or is hung up) or written. Replaces what was watched."""
        self.unwatch(fd)
        mask = 0
        if on_readable is not None:
            self._readers[fd] = on_readable
            mask |= select.POLLIN
        if on_writable is not None:
            self._writers[fd] = on_writable
            mask |= select.POLLOUT
        if mask:
            self._poll.register(fd, mask)

    def unwatch(self, fd: int) -> None:
        if fd in self._readers or fd in self._writers:
            self._readers.pop(fd, None)
            self._writers.pop(fd, None)
            self._poll.unregister(fd)

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once from inside `run`, `seconds` from now or a little later."""
        self._timers.append((time.monotonic() + seconds, callback))

    @property
    def has_path(self) -> bool:
        return self._way is not None

    # --- the loop ---

    def run(self, until: Callable[[], bool]) -> None:
        """Move bytes until `until()` holds. What ends the session is raised."""
        while True:
            try:
                self._flush()
                if until():
                    return
                self._turn()
            except (OSError, StreamReset, _PathLost) as error:
                self._resume(error)

    def _turn(self) -> None:
        now = time.monotonic()
        due = min([self._heard + PROBE_AFTER_S, *(at for at, _ in self._timers)])
        way = self._way
        assert way is not None
        timeout = 0 if way.websocket.pending else int(max(0.0, due - now) * 1000) + 1
        path = way.websocket.fileno()
        for fd, mask in self._poll.poll(timeout):
            if fd == path:
                if mask & _READABLE:
                    self._read(way)
                continue
            if mask & (select.POLLIN | _GONE) and fd in self._readers:
                self._readers[fd]()
            if mask & (select.POLLOUT | _GONE) and fd in self._writers:
                self._writers[fd]()
        if way.websocket.pending and self._reading:
            self._read(way)
        self._tick(time.monotonic())

    def _tick(self, now: float) -> None:
        due = [timer for timer in self._timers if timer[0] <= now]
        if due:
            self._timers = [timer for timer in self._timers if timer[0] > now]
            for _, callback in due:
                callback()
        silent = now - self._heard
        if not self._reading:
            self._heard = now
        elif silent >= DEAD_AFTER_S:
            raise _PathLost(f"nothing was heard for {DEAD_AFTER_S:.0f} seconds")
        elif silent >= PROBE_AFTER_S and not self._probing:
            self._probing = True
            self.submit("environment/info", {}, lambda result, error: None)

    @property
    def _reading(self) -> bool:
        return self._unread < MAX_UNREAD_BYTES

    def _flush(self) -> None:
        way = self._way
        assert way is not None
        for message in way.stream.outbox:
            way.websocket.send(message)
        way.stream.outbox.clear()
        if way.websocket.wants_write:
            way.websocket.write()
        mask = select.POLLOUT if way.websocket.wants_write else 0
        mask |= _READABLE if self._reading else 0
        if mask != self._mask:
            self._mask = mask
            self._poll.modify(way.websocket.fileno(), mask)

    def _read(self, way: Way) -> None:
        alive = way.websocket.read()
        self._heard = time.monotonic()
        self._probing = False
        for message in way.websocket.messages():
            for value in way.stream.receive(message):
                self._dispatch(value)
        if not self._ack_due:
            # What a few records more would have acknowledged by themselves.
            self._ack_due = True
            self.call_after(ACK_DELAY_S, self._acknowledge)
        if not alive or way.websocket.closed_because:
            raise _PathLost(
                f"the relay closed the connection {way.websocket.closed_because}".rstrip()
            )

    def _acknowledge(self) -> None:
        self._ack_due = False
        if self._way is not None:
            self._way.stream.acknowledge()

    def _dispatch(self, value: dict[str, Any]) -> None:
        method, number = value.get("method"), value.get("id")
        if isinstance(method, str):
            params = value.get("params")
            if isinstance(params, dict):
                channel = self._processes.get(str(params.get("processId")))
                if channel is not None:
                    channel.notified(method, params)
            return
        request = self._requests.pop(number, None) if isinstance(number, int) else None
        if request is None:
            return
        while self._queue and len(self._requests) < MAX_REQUESTS:
            self._ask(*self._queue.popleft())
        error, result = value.get("error"), value.get("result")
        if isinstance(error, dict):
            request.done(None, self._failure(request.method, error))
        else:
            request.done(result if isinstance(result, dict) else {}, None)

    def _failure(self, method: str, error: dict[str, Any]) -> CodexctlError:
        code, text = error.get("code"), str(error.get("message"))[:500]
        version = self.environment.version or "of an unknown version"
        if method == "process/start" and "os error 2" in text:
            return NotFoundOnHost("the executor has no such command or folder")
        if code == _NOT_FOUND:
            return NoSuchFile(text.partition(" (os error")[0].lower())
        if code in (_INVALID_PARAMS, -32601):
            return ProtocolError(
                f"the executor, codex {version}, does not take {method} as codexctl sends it: "
                f"{text}",
                hint="see which versions work: docs/official.md",
            )
        return Refused(f"the executor refused {method}: {text}")

    # --- paths ---

    def _attach(self, *, resume: bool = False) -> None:
        """A path and an initialized session on it."""
        way = open_way(self.record, self._key)
        if resume and way.registration_id != self._registration_id:
            way.websocket.close()
            raise ExecutorLost(
                f"the executor {self.record.name} was started anew; what ran there has ended",
                hint="run the command again",
            )
        self._way, self._registration_id = way, way.registration_id
        self._heard, self._probing, self._mask = time.monotonic(), False, _READABLE
        self._poll.register(way.websocket.fileno(), self._mask)
        params = {"clientName": "codexctl"}
        if resume:
            params["resumeSessionId"] = self._session_id
        answer = self._first_answer(way, params)
        self._session_id = str(answer.get("sessionId") or "")
        way.stream.send({"method": "initialized", "params": {}})
        if not resume:
            self.environment = parse_environment(answer.get("environmentInfo"))

    def _first_answer(self, way: Way, params: dict[str, Any]) -> dict[str, Any]:
        """The answer to initialize, before anything else is asked."""
        number, self._next_id = self._next_id, self._next_id + 1
        way.stream.send({"id": number, "method": "initialize", "params": params})
        started = time.monotonic()
        shifted = False
        while (waited := time.monotonic() - started) < CALL_TIMEOUT_S:
            self._flush()
            self._poll_path(way, COUNT_FROM_ONE_AFTER_S)
            if not way.websocket.read():
                raise ConnectionFailed("the relay closed the connection")
            for message in way.websocket.messages():
                for value in way.stream.receive(message):
                    if value.get("id") == number:
                        return self._initialized(value)
            if waited >= COUNT_FROM_ONE_AFTER_S and not shifted:
                shifted = True
                way.stream.count_from_one()
        raise ConnectionFailed(
            f"the executor {self.record.name} shook hands and then said nothing",
            hint="it may run another version of codex: see codex --version there",
        )

    def _poll_path(self, way: Way, seconds: float) -> None:
        poll = select.poll()
        poll.register(way.websocket.fileno(), _READABLE)
        poll.poll(int(seconds * 1000))

    def _initialized(self, value: dict[str, Any]) -> dict[str, Any]:
        error, result = value.get("error"), value.get("result")
        if isinstance(error, dict):
            text = str(error.get("message"))[:500]
            if self._session_id:
                raise ExecutorLost(
                    f"the executor {self.record.name} has given the session up: {text}",
                    hint="run the command again",
                )
            raise ProtocolError(f"the executor {self.record.name} refused to begin: {text}")
        return result if isinstance(result, dict) else {}

    def _drop_path(self) -> None:
        way, self._way = self._way, None
        if way is not None:
            if self._mask:
                self._poll.unregister(way.websocket.fileno())
            way.websocket.close()

    def _resume(self, lost: Exception) -> None:
        """Another path for the same session, or what makes that impossible raised."""
        self._drop_path()
        if isinstance(lost, StreamReset) and lost.reason not in ("peer-gone", "peer-slow"):
            raise SessionOver(
                f"the executor {self.record.name} ended the stream: {lost.reason}",
                hint="run the command again",
            ) from lost
        deadline = time.monotonic() + RESUME_WITHIN_S
        failures = 0
        while True:
            try:
                self._attach(resume=True)
                break
            except (AuthenticationFailed, ExecutorLost):
                raise
            except (ConnectionFailed, OSError) as error:
                self._drop_path()
                if time.monotonic() > deadline:
                    raise ConnectionFailed(
                        f"the executor {self.record.name} was lost: {error}",
                        hint="what ran in this session has ended; run the command again",
                    ) from error
            delay = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2**failures)
            failures += 1
            # Jitter between half and all of it, so that a relay's clients do not return as one.
            time.sleep(delay * (0.5 + os.urandom(1)[0] / 512))
        for number, request in self._requests.items():
            self._send(number, request)
        for channel in list(self._processes.values()):
            channel.resumed()


class _PathLost(ConnectionFailed):
    code = "path"
