"""Who is told what, and when: rules without I/O. Inputs and `now` in, notices to send out.

- A notice is about an approval that waits for a person, or a thread that has finished or failed.
  Nothing else is ever sent. Its id says what it is about, and each target gets an id once; what was
  told is kept by the caller and given back after a restart.
- A target that belongs to a device is left out while that device watches the thread; one that
  belongs to none is left out while any device does. `always` ends this.
- Left out for an approval means later: when the watching ends and it still waits, it is told.
  Left out for a finished thread means never: it was seen.
- A turn that ends is not the end of the work when the next one begins by itself (a goal), so its
  end is told SETTLE_S later, if nothing has begun until then. An interrupted turn was a person's.
- Each target has an outlet of its own: at most BURST notices at once and one more each
  REFILL_S; what is more, and what waited for a target that failed, is sent as one. A failure
  is tried again later and later, and given up after TRIES; the newest MAX_WAITING are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

SETTLE_S = 3.0
BURST = 5  # notices at once to one target
REFILL_S = 60.0  # for one more
MAX_WAITING = 20  # notices that wait for one target
TRIES = 6
RETRY_FIRST_S = 5.0
RETRY_MOST_S = 600.0
MAX_SETTLING = 512  # threads whose turn has just ended
MAX_TOLD = 4096  # notices of which it is kept that they were told
TITLE_CHARS = 120
BODY_CHARS = 600


class Notice(NamedTuple):
    """What somebody is told. `link` opens the thread; `kind` is waiting, finished or failed."""

    id: str
    kind: str
    thread: str
    title: str
    body: str
    link: str


class Target(NamedTuple):
    """Where notices go. `device` is the paired device that it belongs to, or None."""

    name: str
    device: str | None = None
    always: bool = False


class Send(NamedTuple):
    """The order to send one notice to one target; answer it with `Notifier.sent` or `failed`."""

    target: str
    notice: Notice
    ids: tuple[str, ...]  # of all notices that it stands for


def merged(notices: list[Notice]) -> Notice:
    """Several notices as one; it leads to the newest thread."""
    if len(notices) == 1:
        return notices[0]
    last = notices[-1]
    waiting = sum(notice.kind == "waiting" for notice in notices)
    head = f"{len(notices)} threads: {waiting} wait for you" if waiting else ""
    title = head or f"{len(notices)} threads have ended"
    body = "\n".join(notice.title for notice in notices)
    kind = "waiting" if waiting else last.kind
    return Notice(last.id, kind, last.thread, title, body[:BODY_CHARS], last.link)


class _Outlet:
    """What waits for one target."""

    def __init__(self, target: Target, now: float) -> None:
        self.target = target
        self.waiting: list[Notice] = []
        self.sending: list[Notice] = []
        self.failures = 0
        self.not_before = 0.0
        self._allowance = float(BURST)
        self._allowed_at = now

    def put(self, notice: Notice) -> None:
        self.waiting.append(notice)
        del self.waiting[:-MAX_WAITING]

    def next(self, now: float) -> Send | None:
        if self.sending or not self.waiting or now < self.not_before:
            return None
        gained = (now - self._allowed_at) / REFILL_S
        self._allowance = min(float(BURST), self._allowance + gained)
        self._allowed_at = now
        if self._allowance < 1:
            self.not_before = now + (1 - self._allowance) * REFILL_S
            return None
        self._allowance -= 1
        late = self.not_before > 0
        count = len(self.waiting) if late else 1
        self.sending, self.waiting = self.waiting[:count], self.waiting[count:]
        self.not_before = 0.0
        notice = merged(self.sending)
        return Send(self.target.name, notice, tuple(each.id for each in self.sending))

    def failed(self, now: float, needed: Callable[[Notice], bool], *, for_good: bool) -> None:
        """What was being sent and is needed still waits again; given up after TRIES, or at once."""
        waiting = {notice.id for notice in self.waiting}
        back = [n for n in self.sending if needed(n) and n.id not in waiting]
        self.sending = []
        self.failures += 1
        if for_good or self.failures >= TRIES:
            self.failures = 0
        else:
            self.waiting = [*back, *self.waiting][-MAX_WAITING:]
            delay = min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** (self.failures - 1))
            self.not_before = now + delay

    @property
    def due(self) -> float | None:
        return None if self.sending or not self.waiting else self.not_before


class Notifier:
    """The rules over all targets. Every method returns the orders that it caused."""

    def __init__(
        self, targets: Iterable[Target] = (), told: Iterable[tuple[str, str]] = ()
    ) -> None:
        self._outlets: dict[str, _Outlet] = {}
        self._told = dict.fromkeys(told)  # (target, notice id), the oldest first
        self._open: dict[str, Notice] = {}  # approvals that wait, by their notice's id
        self._settling: dict[str, tuple[float, Notice]] = {}  # by thread
        self._watchers: dict[str, frozenset[str]] = {}  # devices, by thread
        self.set_targets(targets, 0.0)

    def set_targets(self, targets: Iterable[Target], now: float) -> list[Send]:
        """Replace the targets; one that keeps its name keeps what waits for it."""
        before, self._outlets = self._outlets, {}
        for target in targets:
            outlet = before.get(target.name) or _Outlet(target, now)
            outlet.target = target
            self._outlets[target.name] = outlet
        return []

    # --- what happened ---

    def approval_requested(self, notice: Notice, now: float) -> list[Send]:
        """An approval waits; also said again for each that still waits after a restart."""
        self._open[notice.id] = notice
        return self._offer(now)

    def approval_ended(self, notice_id: str) -> None:
        """It was answered, withdrawn or has expired: nobody needs to hear of it any more."""
        self._open.pop(notice_id, None)
        for outlet in self._outlets.values():
            outlet.waiting = [notice for notice in outlet.waiting if notice.id != notice_id]
        self._told = {pair: None for pair in self._told if pair[1] != notice_id}

    def turn_started(self, thread: str) -> None:
        self._settling.pop(thread, None)

    def turn_completed(self, notice: Notice, now: float) -> list[Send]:
        """A turn ended by itself, well or badly; not for one that was interrupted."""
        self._settling[notice.thread] = (now + SETTLE_S, notice)
        while len(self._settling) > MAX_SETTLING:
            del self._settling[next(iter(self._settling))]
        return []

    def watched(self, thread: str, devices: Iterable[str], now: float) -> list[Send]:
        """The devices that watch a thread from now on; empty for none."""
        chosen = frozenset(devices)
        if chosen:
            self._watchers[thread] = chosen
        else:
            self._watchers.pop(thread, None)
        return self._offer(now)

    def tick(self, now: float) -> list[Send]:
        """Time has passed; call it at `due`."""
        for thread, (at, notice) in list(self._settling.items()):
            if at <= now:
                del self._settling[thread]
                for outlet in self._outlets.values():
                    if self._wants(outlet, notice):
                        self._put(outlet, notice)
        return self._next(now)

    def sent(self, target: str, now: float) -> list[Send]:
        """A send succeeded."""
        outlet = self._outlets.get(target)
        if outlet is not None:
            outlet.sending, outlet.failures = [], 0
        return self._next(now)

    def failed(self, target: str, now: float, *, for_good: bool = False) -> list[Send]:
        """A send failed; `for_good` where trying again cannot help (it was refused)."""
        outlet = self._outlets.get(target)
        if outlet is not None:
            outlet.failed(now, self._needed, for_good=for_good)
        return self._next(now)

    @property
    def due(self) -> float | None:
        """When `tick` has something to do; None for not before another input."""
        times = [at for at, _ in self._settling.values()]
        times += [outlet.due for outlet in self._outlets.values() if outlet.due is not None]
        return min(times, default=None)

    # --- rules ---

    def _offer(self, now: float) -> list[Send]:
        for notice in self._open.values():
            for outlet in self._outlets.values():
                if self._wants(outlet, notice):
                    self._put(outlet, notice)
        return self._next(now)

    def _wants(self, outlet: _Outlet, notice: Notice) -> bool:
        target = outlet.target
        if (target.name, notice.id) in self._told:
            return False
        watchers = self._watchers.get(notice.thread, frozenset())
        if target.always or not watchers:
            return True
        return target.device is not None and target.device not in watchers

    def _needed(self, notice: Notice) -> bool:
        """An approval may have ended while it was on its way."""
        return notice.kind != "waiting" or notice.id in self._open

    def _put(self, outlet: _Outlet, notice: Notice) -> None:
        self._told[outlet.target.name, notice.id] = None
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]
        outlet.put(notice)

    def _next(self, now: float) -> list[Send]:
        orders = [outlet.next(now) for outlet in self._outlets.values()]
        return [order for order in orders if order is not None]
