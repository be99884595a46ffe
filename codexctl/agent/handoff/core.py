"""Who owns a thread while it moves: two records, one on each host, and no I/O.

    source:   frozen ──commit──▶ committed ──retire──▶ retired
                 └──────undo──▶ undone
    target:   reserved ──receive──▶ receiving ──restored──▶ ready ──own──▶ owned
                 └────────discard───────┴──────discard──▶ discarded ◀──┘

The one decision is the write of `committed` in the source's journal: before it the source owns the
thread, after it the target. What has to be true first is shown by seals, random words whose SHA-256
(the lock) the other side got earlier:

- the target reveals `ready` when the thread is restored, verified and read back there; only with it
  can the source commit;
- the source reveals `commit` when it has committed; only with it does the target own the thread;
- the source reveals `undo` when it has undone; only with it does a ready target discard.

The source reveals one of its two seals, never both. So whatever a device, which only carries these
words, does, repeats, leaves out or does late: there is one owner at every instant, at most one side
lets the thread act, and each pair of records has a way to an end.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace

from codexctl.errors import Refused

FROZEN, COMMITTED, RETIRED, UNDONE = "frozen", "committed", "retired", "undone"
RESERVED, RECEIVING, READY, OWNED = "reserved", "receiving", "ready", "owned"
DISCARDED = "discarded"
SOURCE_STATES = (FROZEN, COMMITTED, RETIRED, UNDONE)
TARGET_STATES = (RESERVED, RECEIVING, READY, OWNED, DISCARDED)
OVER = (RETIRED, UNDONE, OWNED, DISCARDED)
SEAL_BYTES = 32

# What a resume does next.
SEND, COMMIT, OWN, RETIRE, UNDO, DISCARD, DONE = (
    "send", "commit", "own", "retire", "undo", "discard", "done",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """The source's side. Seals are hex texts; `ready_lock` is of the target's seal."""

    id: str
    thread: str
    state: str
    commit_seal: str
    undo_seal: str
    ready_lock: str

    @property
    def locks(self) -> dict[str, str]:
        return {"commit": lock_of(self.commit_seal), "undo": lock_of(self.undo_seal)}


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """The target's side. The locks are of the source's seals; empty until it is receiving."""

    id: str
    thread: str
    state: str
    ready_seal: str
    commit_lock: str = ""
    undo_lock: str = ""


def lock_of(seal: str) -> str:
    return hashlib.sha256(seal.encode()).hexdigest()


def fits(seal: str, lock: str) -> bool:
    return bool(lock) and hmac.compare_digest(lock_of(seal), lock)


# --- the source ---


def committed(record: SourceRecord, ready_seal: str) -> SourceRecord:
    """Give the thread to the target. Harmless when repeated. Refused."""
    if record.state in (COMMITTED, RETIRED):
        return record
    if record.state != FROZEN:
        raise Refused(f"this handoff is {record.state} already", hint="begin a new one")
    if not fits(ready_seal, record.ready_lock):
        raise Refused("the target has not shown that it is ready")
    return replace(record, state=COMMITTED)


def retired(record: SourceRecord) -> SourceRecord:
    if record.state not in (COMMITTED, RETIRED):
        raise Refused(f"a handoff that is {record.state} leaves the thread where it is")
    return replace(record, state=RETIRED)


def undone(record: SourceRecord) -> SourceRecord:
    """Keep the thread here. Harmless when repeated. Refused once it is the target's."""
    if record.state in (COMMITTED, RETIRED):
        raise Refused(
            "the thread is the target's already",
            hint="finish with --resume, then hand it back: codexctl thread handoff",
        )
    return replace(record, state=UNDONE)


def commit_seal(record: SourceRecord) -> str:
    if record.state not in (COMMITTED, RETIRED):
        raise Refused(f"a handoff that is {record.state} is not committed")
    return record.commit_seal


def undo_seal(record: SourceRecord) -> str:
    if record.state != UNDONE:
        raise Refused(f"a handoff that is {record.state} is not undone")
    return record.undo_seal


# --- the target ---


def receiving(record: TargetRecord, commit_lock: str, undo_lock: str) -> TargetRecord:
    if record.state == RESERVED:
        return replace(
            record, state=RECEIVING, commit_lock=commit_lock, undo_lock=undo_lock
        )  # fmt: skip
    if record.state in (RECEIVING, READY, OWNED) and record.commit_lock == commit_lock:
        return record
    raise Refused(f"this handoff is {record.state} already", hint="begin a new one")


def ready(record: TargetRecord) -> TargetRecord:
    if record.state not in (RECEIVING, READY, OWNED):
        raise Refused(f"a handoff that is {record.state} cannot become ready")
    return record if record.state == OWNED else replace(record, state=READY)


def ready_seal(record: TargetRecord) -> str:
    if record.state not in (READY, OWNED):
        raise Refused(f"a handoff that is {record.state} is not ready")
    return record.ready_seal


def owned(record: TargetRecord, seal: str) -> TargetRecord:
    if not fits(seal, record.commit_lock):
        raise Refused("the source has not given the thread away")
    if record.state not in (READY, OWNED):
        # Cannot be: the seal is revealed for a ready target alone, and that does not discard.
        raise Refused(f"a handoff that is {record.state} cannot own the thread")
    return replace(record, state=OWNED)


def discarded(record: TargetRecord, seal: str) -> TargetRecord:
    """Let go of what arrived; a ready target does so at the source's word alone. Refused."""
    if record.state == OWNED:
        raise Refused("the thread is this host's", hint="hand it back instead")
    if record.state == READY and not fits(seal, record.undo_lock):
        raise Refused(
            "this host is ready to own the thread, and the source has not said that it kept it",
            hint="ask the source: codexctl thread handoff THREAD --resume",
        )
    return replace(record, state=DISCARDED)


# --- both ---


def owner(source: SourceRecord | None) -> str:
    """`source` or `target`: by the one record that decides."""
    gone = source is not None and source.state in (COMMITTED, RETIRED)
    return "target" if gone else "source"


def source_acts(source: SourceRecord | None) -> bool:
    """Whether the source lets the thread take turns."""
    return source is None or source.state == UNDONE


def target_acts(target: TargetRecord | None) -> bool:
    return target is not None and target.state == OWNED


def next_step(source: str | None, target: str | None) -> str:
    """What a resume does next, from the states of both sides; None where there is no record."""
    if source in (None, UNDONE):
        return DONE if target in (None, DISCARDED) else DISCARD
    if source == FROZEN:
        return {None: UNDO, DISCARDED: UNDO, READY: COMMIT}.get(target, SEND)
    if target == READY:
        return OWN
    return RETIRE if source == COMMITTED else DONE
