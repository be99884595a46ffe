"""The relay's bounds, each with a name, a unit and a reason. Nothing in it grows past one."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * 1024

# Of one HTTP request. An official register call with its ML-KEM key is under 4 KiB.
MAX_HEAD_BYTES = 16 * KIB
MAX_BODY_BYTES = 64 * KIB
# A person's network may be slow; someone who sends a byte a second is holding a connection.
HEAD_TIMEOUT_S = 10.0
KEEPALIVE_TIMEOUT_S = 20.0  # between two requests of one connection
# How long a peer may take to answer our close frame before its socket is aborted.
CLOSE_TIMEOUT_S = 2.0
# Who takes nothing of what is sent to it for so long is cut by the kernel (Linux).
STALLED_S = 30.0
# One read of a socket; bounds what a paused link still delivers, and picows' read buffer.
READ_BYTES = 128 * KIB
# A link that sent nothing for one sweep is pinged; after three it is dead.
SWEEP_S = 10.0
SILENT_SWEEPS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What one token, one owner and the whole relay may use. The defaults serve a large team."""

    # Sockets: everything that is open, and what has not (yet) become a WebSocket.
    connections: int = 20_000
    pending_connections: int = 1_024
    # WebSockets of one owner token, which a fleet of hosts may share, and of any other token.
    links_an_owner_token: int = 4_096
    links_a_device_token: int = 256
    # Streams claimed with one token: a session is one. Those without a connection make room.
    streams_an_owner_token: int = 4_096
    streams_a_device_token: int = 512
    # Streams of one official executor at a time. It takes no more, and says no better why.
    streams_an_executor: int = 128
    # Bytes accepted and not yet written to the receiver's socket. A session keeps at most 4 MiB
    # unacknowledged, so twice that is only reached by who does not read.
    queue_bytes_a_link: int = 8 * MIB
    queue_bytes_an_owner: int = 128 * MIB
    queue_bytes: int = 512 * MIB
    # How long an official executor is not read for a device that takes nothing: its other
    # streams wait as well.
    hold_executor_s: float = 10.0
    # New streams, registrations and connects a second of one token, and how many at once.
    handshakes_a_second: float = 100.0
    handshakes_at_once: int = 400
    # Pairing codes are short: these two bound how often anybody may try one.
    claims_a_minute: int = 60
    claims_a_minute_a_nameplate: int = 5
    # Rows that one owner may make.
    environments_an_owner: int = 4_096
    device_tokens_an_owner: int = 4_096
    pairings_an_owner: int = 16
    enrolments_an_owner: int = 256
    pairings: int = 1_000
    # Tickets of WebSocket URLs that were handed out and not used yet, of one token.
    tickets_a_token: int = 512
    ticket_s: int = 180
    # How long a stream stays reserved for its claimer without a connection: longer than a host
    # keeps a session (10 minutes).
    claim_kept_s: int = 900
    pairing_max_s: int = 600
    # A pairing's own connection may end its work after the offer ended, for this long.
    pairing_grace_s: int = 60
    token_max_s: int = 366 * 86_400
    # An enrolment is for a machine that is being set up now.
    enrolment_max_s: int = 86_400
    drain_s: float = 5.0


class Bucket:
    """A token bucket: `rate` a second, at most `burst` at once."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = float(burst), now

    def take(self, now: float) -> bool:
        """Use one; False when there is none."""
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True

    def full(self, now: float) -> bool:
        """Whether nothing is remembered here that a new bucket would not know."""
        return self._level + (now - self._at) * self._rate >= self._burst
