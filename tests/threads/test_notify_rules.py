"""Who is told what and when, in time that the test makes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.agent.notify import (
    BURST,
    MAX_WAITING,
    REFILL_S,
    SETTLE_S,
    TRIES,
    Notice,
    Notifier,
    Send,
    Target,
)

PHONE, ANY = Target("phone", device="d1"), Target("any")


def approval(name: str, thread: str = "t1") -> Notice:
    return Notice(f"approval:{name}", "waiting", thread, f"{name} waits", "", "link")


def end(name: str, thread: str = "t1") -> Notice:
    return Notice(f"turn:{name}", "finished", thread, f"{name} finished", "", "link")


def told(orders: list[Send]) -> list[tuple[str, str]]:
    return [(order.target, order.notice.id) for order in orders]


def test_an_approval_is_told_once_to_each_target() -> None:
    notifier = Notifier([PHONE, ANY])
    assert told(notifier.approval_requested(approval("a"), 0)) == [
        ("phone", "approval:a"),
        ("any", "approval:a"),
    ]
    assert notifier.sent("phone", 1) == []
    assert notifier.sent("any", 1) == []
    assert notifier.approval_requested(approval("a"), 2) == []
    assert notifier.watched("t1", ["d1"], 3) == []
    assert notifier.watched("t1", [], 4) == []


def test_what_was_told_before_a_restart_is_not_told_again() -> None:
    notifier = Notifier([PHONE, ANY], told=[("phone", "approval:a")])
    assert told(notifier.approval_requested(approval("a"), 0)) == [("any", "approval:a")]


def test_a_device_that_watches_is_not_told_until_it_leaves() -> None:
    notifier = Notifier([PHONE, ANY, Target("log", always=True)])
    notifier.watched("t1", ["d1"], 0)
    assert told(notifier.approval_requested(approval("a"), 1)) == [("log", "approval:a")]
    # Another device watches on: the phone's owner has left, the target of nobody stays quiet.
    assert told(notifier.watched("t1", ["d2"], 2)) == [("phone", "approval:a")]
    assert told(notifier.watched("t1", [], 3)) == [("any", "approval:a")]


def test_what_was_answered_while_it_was_watched_is_never_told() -> None:
    notifier = Notifier([PHONE])
    notifier.watched("t1", ["d1"], 0)
    assert notifier.approval_requested(approval("a"), 1) == []
    notifier.approval_ended("approval:a")
    assert notifier.watched("t1", [], 2) == []


def test_the_end_of_the_work_is_told_when_nothing_follows() -> None:
    notifier = Notifier([PHONE])
    assert notifier.turn_completed(end("1"), 0) == []
    notifier.turn_started("t1")
    assert notifier.due is None
    notifier.turn_completed(end("2"), 1)
    assert notifier.due == 1 + SETTLE_S
    assert told(notifier.tick(1 + SETTLE_S)) == [("phone", "turn:2")]


def test_an_end_that_was_watched_is_never_told() -> None:
    notifier = Notifier([PHONE])
    notifier.watched("t1", ["d1"], 0)
    notifier.turn_completed(end("1"), 0)
    assert notifier.tick(SETTLE_S) == []
    assert notifier.watched("t1", [], 9) == []


def test_many_at_once_become_one_and_wait_their_time() -> None:
    notifier = Notifier([ANY])
    sent = []
    for number in range(BURST + 4):
        orders = notifier.approval_requested(approval(str(number), f"t{number}"), 0)
        sent += orders
        if orders:
            orders = notifier.sent("any", 0)
            assert orders == []
    assert len(sent) == BURST
    assert notifier.tick(1) == []
    assert notifier.due is not None
    assert notifier.due <= REFILL_S
    (order,) = notifier.tick(notifier.due)
    assert order.notice.title == "4 threads: 4 wait for you"
    assert len(order.ids) == 4


def test_a_target_that_fails_is_tried_later_and_later_and_given_up() -> None:
    notifier = Notifier([ANY, PHONE])
    orders = notifier.approval_requested(approval("a"), 0)
    assert [order.target for order in orders] == ["any", "phone"]
    assert notifier.sent("phone", 0) == []
    waits, now = [], 0.0
    for _ in range(TRIES - 1):
        assert notifier.failed("any", now) == []
        assert notifier.due is not None
        waits.append(notifier.due - now)
        now = notifier.due
        assert [order.target for order in notifier.tick(now)] == ["any"]
    assert waits[:3] == [5, 10, 20]
    assert waits == sorted(waits)
    assert notifier.failed("any", now) == []
    assert notifier.due is None


def test_a_failing_target_neither_holds_up_the_others_nor_is_flooded_afterwards() -> None:
    notifier = Notifier([ANY, Target("other")])
    notifier.approval_requested(approval("0"), 0)
    notifier.sent("other", 0)
    notifier.failed("any", 0)
    for number in range(1, 40):
        orders = notifier.approval_requested(approval(str(number), f"t{number}"), 1)
        assert all(order.target == "other" for order in orders)
        notifier.sent("other", 1)
    orders = [order for order in notifier.tick(30) if order.target == "any"]
    assert [len(order.ids) for order in orders] == [MAX_WAITING]
    assert orders[0].ids[-1] == "approval:39"
    assert [order for order in notifier.sent("any", 31) if order.target == "any"] == []


def test_what_is_answered_while_a_target_fails_is_not_told_afterwards() -> None:
    notifier = Notifier([ANY])
    notifier.approval_requested(approval("a"), 0)
    notifier.failed("any", 0)
    notifier.approval_ended("approval:a")
    assert notifier.tick(60) == []


def test_a_refusal_is_not_tried_again() -> None:
    notifier = Notifier([ANY])
    notifier.approval_requested(approval("a"), 0)
    assert notifier.failed("any", 0, for_good=True) == []
    assert notifier.due is None


def test_targets_are_replaced_and_keep_what_waits() -> None:
    notifier = Notifier([ANY])
    notifier.approval_requested(approval("a"), 0)
    notifier.failed("any", 0)
    notifier.set_targets([ANY._replace(always=True), PHONE], 1)
    assert told(notifier.tick(5)) == [("any", "approval:a")]
    notifier.set_targets([], 6)
    assert notifier.sent("any", 7) == []


NAMES = st.sampled_from("ab")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), NAMES, st.sampled_from(["t1", "t2"])),
        st.tuples(st.just("end"), NAMES),
        st.tuples(st.just("watch"), st.sampled_from(["t1", "t2"]), st.sets(NAMES)),
        st.tuples(st.just("turn"), st.integers(0, 3), st.sampled_from(["t1", "t2"])),
        st.tuples(st.just("sent"), NAMES),
        st.tuples(st.just("failed"), NAMES),
        st.tuples(st.just("pass"), st.floats(0, 100)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_whatever_happens_nothing_is_told_twice_nor_what_nobody_needs(taken: list[tuple]) -> None:  # type: ignore[type-arg]
    notifier = Notifier([Target("a", device="a"), Target("b")])
    now, busy, open_, delivered = 0.0, set(), set(), []
    for step in taken:
        kind, orders = step[0], []
        if kind == "ask":
            notice = approval(step[1], step[2])
            fresh = notice.id not in open_
            open_.add(notice.id)
            orders = notifier.approval_requested(notice, now)
            if fresh:
                delivered = [pair for pair in delivered if pair[1] != notice.id]
        elif kind == "end":
            open_.discard(f"approval:{step[1]}")
            notifier.approval_ended(f"approval:{step[1]}")
        elif kind == "watch":
            orders = notifier.watched(step[1], step[2], now)
        elif kind == "turn":
            orders = notifier.turn_completed(end(str(step[1]), step[2]), now)
        elif kind == "pass":
            now += step[1]
            orders = notifier.tick(now)
        elif step[1] in busy:
            busy.discard(step[1])
            if kind == "sent":
                orders = notifier.sent(step[1], now)
            else:
                delivered = [pair for pair in delivered if pair[0] != step[1]]
                orders = notifier.failed(step[1], now)
        for order in orders:
            assert order.target not in busy, "one at a time to a target"
            busy.add(order.target)
            for each in order.ids:
                assert (order.target, each) not in delivered
                assert each.startswith("turn:") or each in open_
                delivered.append((order.target, each))
