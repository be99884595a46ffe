"""The modes of a thread by name, the narrowest first, and what a bound makes of a wish.

The second of each is the safe one: what a thread gets where nothing else is asked for and allowed.
"""

from __future__ import annotations

SANDBOXES = ("read-only", "workspace-write", "danger-full-access")
APPROVALS = ("untrusted", "on-request", "never")

JOINING = ("thread/start", "thread/resume", "thread/fork")
"""The official calls that choose, or inherit, a thread's modes, and after which its events come."""


def within(order: tuple[str, ...], wish: object, most: str) -> str:
    """The wish where `most` allows it, else the safe mode, or `most` where that is narrower."""
    if isinstance(wish, str) and wish in order and order.index(wish) <= order.index(most):
        return wish
    return min(order[1], most, key=order.index)
