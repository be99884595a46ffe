"""Reliable records over paths that come and go (PROTOCOL.md section 4). No I/O, no clock.

The rules:
- A record is encrypted once, gets the next sequence number, and is kept until it is acked.
- A path is a WebSocket, and the device gets new ones. On a new path it says with `resume` what it
  expects next and the host answers in kind; what the other has not got is sent again, byte for
  byte, and nothing before the peer's resume has come.
- Records are delivered in order, once. One that does not decrypt faults the path, not the session;
  too many such paths without progress end it.
- Nothing sent for HEARTBEAT_S: a heartbeat. Nothing heard for DEAD_S: the path is faulted.

Whatever is to be written to the path is appended to `outbox`; who drives this drains it.
"""

from __future__ import annotations

from collections import deque

from codexctl.errors import ConnectionFailed, ProtocolError
from codexctl.noise.transport import TAG_BYTES, NotGenuine, Transport
from codexctl.wire import relay
from codexctl.wire.relay import Ack, Buffer, Data, Frame, Heartbeat, Reset, Resume

KEPT_BYTES = 4 << 20  # of ciphertext, until acked; then the sender waits
ACK_RECORDS = 32
ACK_BYTES = 1 << 20
ACK_DELAY_S = 0.05
AHEAD_RECORDS = 64
AHEAD_BYTES = 1 << 20
HEARTBEAT_S = 3.0
DEAD_S = 9.0
FAULTY_PATHS = 8  # in a row without a delivered record


class PathFault(ConnectionFailed):
    """This path brought something impossible, or nothing; get another one.

    `reported` is true where the other end or the relay said so and need not be told; `busy` where
    the same path may be tried again in a moment.
    """

    code = "path"

    def __init__(self, message: str, *, reported: bool = False, busy: bool = False) -> None:
        super().__init__(message)
        self.reported = reported
        self.busy = busy


class SessionOver(ConnectionFailed):
    """The session cannot go on, on any path."""

    code = "session-over"


# What a host or relay says in a reset, and whether time can cure it (PROTOCOL.md section 1).
_CURABLE = {"path", "peer-gone", "peer-slow", "busy", "limit"}
_ENDINGS = {
    "unknown-session": (
        "the host was restarted or has given this session up",
        "run the command again; see what still runs with: codexctl ps HOST",
    ),
    "version": ("the host speaks another version of the protocol", "update codexctl on both ends"),
    "unpaired": ("the host does not know this device", "pair again: codexctl pair URL"),
    "revoked": ("the host has revoked this device", "pair again: codexctl pair URL"),
    "suite": (
        "the host knows this device in the post-quantum suite and takes no other",
        "pair again: codexctl pair URL",
    ),
    "stream-taken": ("the relay gave this session's stream to another", "run the command again"),
    "pairing": (
        "the host has no such pairing offer: it was used, has expired, or a guess was wrong",
        "get a new one on the host: codexctl pair --show",
    ),
    "protocol": ("the host found an error in the protocol", "update codexctl on both ends"),
}


def reset_error(reason: str) -> PathFault | SessionOver:
    """The error that a reset frame's reason stands for."""
    name, _, text = reason.partition(": ")
    if name in _CURABLE:
        return PathFault(
            {
                "path": "the host gave this path up",
                "peer-gone": "the host is not connected to the relay",
                "peer-slow": "this end read too slowly and the relay let go",
                "busy": "the host is busy with other handshakes",
                "limit": "the relay's limit of streams is reached",
            }[name],
            reported=True,
            busy=name == "busy",
        )
    message, hint = _ENDINGS.get(name, ("the other end closed the session", ""))
    if text:
        message = f"{message}: {text}"
    return SessionOver(message, hint=hint)


class Records:
    """Both directions of one session's record stream. All times are seconds of one clock."""

    def __init__(
        self, stream_id: str, transport: Transport, now: float, *, is_device: bool
    ) -> None:
        self._is_device = is_device
        self.stream_id = stream_id
        self.outbox: list[Buffer] = []
        self._transport = transport
        self._prefix = relay.prefix(stream_id)
        self._match = self._prefix + b"\x2a"
        # Sending. kept[0] has sequence number _acked; those from _unsent on wait for a path.
        self._kept: deque[bytearray] = deque()
        self._kept_bytes = 0
        self._acked = 0
        self._next_seq = 0
        self._progress = now
        # Receiving.
        self._expected = 0
        self._ahead: dict[int, bytes] = {}
        self._ahead_bytes = 0
        self._gap_since = now
        self._unacked_records = 0
        self._unacked_bytes = 0
        self._ack_due: float | None = None
        # The path. The first one begins with the handshake in place of resume.
        self._path_up = True
        self._peer_resumed = True
        self._faulty_paths = 0
        self._heard = now
        self._spoke = now

    # --- sending ---

    @property
    def room(self) -> int:
        """Bytes of plaintext that may be sent now; 0 or less: wait for acks."""
        return KEPT_BYTES - self._kept_bytes

    @property
    def proven(self) -> bool:
        """Whether a record has arrived: the peer then holds the keys of this session."""
        return self._expected > 0

    @property
    def unacked(self) -> int:
        """Records that the peer has not acknowledged."""
        return len(self._kept)

    @property
    def ready(self) -> bool:
        """Whether a record sent now goes to a path at once."""
        return self._path_up and self._peer_resumed

    def send(self, plaintext: Buffer, now: float) -> None:
        """Encrypt one record (at most 61440 bytes), keep it, and put it out if a path is ready."""
        size = len(plaintext) + TAG_BYTES
        seq = self._next_seq
        header = relay.data_header(self._prefix, seq, size)
        start = len(header)
        message = bytearray(start + size)
        message[:start] = header
        self._transport.encrypt_into(plaintext, memoryview(message)[start:])
        self._next_seq = seq + 1
        if not self._kept:
            self._progress = now
        self._kept.append(message)
        self._kept_bytes += len(message)
        if self._path_up and self._peer_resumed:
            self.outbox.append(message)
            self._spoke = now

    # --- the path ---

    def path_opened(self, now: float) -> None:
        """A new path: a device says what it expects. Kept records wait for the peer's resume."""
        self._path_up = True
        self._peer_resumed = False
        self._heard = self._spoke = now
        self.outbox.clear()
        if self._is_device:
            self._say_resume(now)

    def path_lost(self) -> None:
        """The path is gone; what was sent stays kept."""
        self._path_up = False
        self._peer_resumed = False
        self._ack_due = None
        self.outbox.clear()

    def _say_resume(self, now: float) -> None:
        self._put(Frame(self.stream_id, Resume(self._expected)), now)
        self._unacked_records = self._unacked_bytes = 0
        self._ack_due = None

    def _put(self, frame: Frame, now: float) -> None:
        self.outbox.append(relay.encode(frame))
        self._spoke = now

    # --- receiving ---

    def receive(self, message: Buffer, now: float) -> list[bytes]:
        """Take one message of this stream; returns the plaintexts of records now deliverable.

        PathFault: get another path. SessionOver: nothing helps.
        """
        self._heard = now
        try:
            if (self._peer_resumed or self._is_device) and message[
                : len(self._match)
            ] == self._match:
                data = relay.decode_data(message, len(self._match))
                return self._record(data.seq, data.payload, now)
            frame = relay.decode(message)
        except ProtocolError as error:
            raise self._fault(str(error)) from None
        if frame.stream_id != self.stream_id:
            raise self._fault("the relay delivered a frame of another stream")
        body = frame.body
        if not (self._peer_resumed or self._is_device or isinstance(body, Resume | Reset)):
            # The device slept, and has not noticed that this end gave the path up.
            raise PathFault("a path did not begin with resume")
        if frame.ack or isinstance(body, Ack):
            self._acknowledge(frame.ack, now)
        if isinstance(body, Data):
            return self._record(body.seq, body.payload, now)
        if isinstance(body, Resume):
            self._resumed(body.next_seq, now)
        elif isinstance(body, Reset):
            raise reset_error(body.reason)
        elif not isinstance(body, Ack | Heartbeat):
            raise self._fault("a handshake came in the middle of a session")
        return []

    def _fault(self, reason: str) -> PathFault | SessionOver:
        self._faulty_paths += 1
        if self._faulty_paths >= FAULTY_PATHS:
            return SessionOver(
                f"the relay damages what it carries: {reason}, {FAULTY_PATHS} times in a row",
                hint="use another relay",
            )
        return PathFault(reason)

    def _record(self, seq: int, payload: Buffer, now: float) -> list[bytes]:
        if seq != self._expected:
            return self._out_of_order(seq, payload, now)
        delivered: list[bytes] = []
        try:
            while True:
                delivered.append(self._transport.decrypt(payload))
                self._expected += 1
                self._unacked_records += 1
                self._unacked_bytes += len(payload)
                if not self._ahead or self._expected not in self._ahead:
                    break
                payload = self._ahead.pop(self._expected)
                self._ahead_bytes -= len(payload)
        except NotGenuine as error:
            # What stood ahead may be forged as well; the peer still has all of it.
            self._ahead.clear()
            self._ahead_bytes = 0
            if not delivered:
                raise self._fault(str(error)) from None
        self._faulty_paths = 0
        if self._unacked_records >= ACK_RECORDS or self._unacked_bytes >= ACK_BYTES:
            self._say_ack(now)
        elif self._ack_due is None:
            self._ack_due = now + ACK_DELAY_S
        return delivered

    def _out_of_order(self, seq: int, payload: Buffer, now: float) -> list[bytes]:
        if seq < self._expected:
            # Sent again before our ack arrived, or replayed: either way it was delivered.
            if self._ack_due is None:
                self._ack_due = now + ACK_DELAY_S
            return []
        if seq in self._ahead:
            return []
        size = self._ahead_bytes + len(payload)
        if seq - self._expected > AHEAD_RECORDS or size > AHEAD_BYTES:
            raise self._fault("the relay lost a record")
        if not self._ahead:
            self._gap_since = now
        self._ahead[seq] = bytes(payload)
        self._ahead_bytes = size
        return []

    def _acknowledge(self, ack: int, now: float) -> None:
        if ack > self._next_seq:
            raise self._fault("an acknowledgement is for more than was sent")
        if self._acked < ack:
            self._progress = now
        while self._acked < ack:
            self._kept_bytes -= len(self._kept.popleft())
            self._acked += 1

    def _resumed(self, next_seq: int, now: float) -> None:
        if next_seq < self._acked:
            # It acknowledged these before: an end that forgets cannot be served.
            raise SessionOver(
                "the other end lost what it had received", hint="run the command again"
            )
        self._acknowledge(next_seq, now)
        if self._is_device:
            if self._peer_resumed:
                return
        else:
            # Each resume means a new path of the device, also where its loss was not noticed.
            self._say_resume(now)
        self._peer_resumed = True
        self.outbox.extend(self._kept)
        self._spoke = self._progress = now

    def _say_ack(self, now: float) -> None:
        self._put(Frame(self.stream_id, relay.ACK, ack=self._expected), now)
        self._unacked_records = self._unacked_bytes = 0
        self._ack_due = None

    # --- time ---

    def deadline(self) -> float | None:
        """When `tick` has something to do; None without a path."""
        if not self._path_up:
            return None
        due = min(self._spoke + HEARTBEAT_S, self._dead_at())
        if self._ack_due is not None and self._ack_due < due:
            return self._ack_due
        return due

    def ack_before(self, moment: float) -> bool:
        """Whether an ack has to be sent before `moment`."""
        return self._ack_due is not None and self._ack_due < moment

    def _dead_at(self) -> float:
        # Heartbeats may pass where records do not: a gap or a missing ack counts as silence.
        since = self._heard
        if self._ahead and self._gap_since < since:
            since = self._gap_since
        if self._kept and self._peer_resumed and self._progress < since:
            since = self._progress
        return since + DEAD_S

    def tick(self, now: float) -> None:
        """Send what is due. PathFault where nothing, or no progress, was heard of for DEAD_S."""
        if not self._path_up:
            return
        if now >= self._dead_at():
            raise PathFault(f"nothing was heard for {DEAD_S:.0f} seconds")
        if self._ack_due is not None and now >= self._ack_due:
            self._say_ack(now)
        if now - self._spoke >= HEARTBEAT_S:
            self._put(Frame(self.stream_id, relay.HEARTBEAT), now)
