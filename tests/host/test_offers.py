"""Offers of a host as a state machine: what ends one, and that noise does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from codexctl.errors import Refused
from codexctl.host.offers import MAX_EXCHANGES, MAX_OFFERS, Offer, Offers, WrongGuess
from codexctl.noise.code import CodeDevice, CodeNoise
from codexctl.noise.offer import derive


def offer(number: int, expires_at: float = 100.0) -> Offer:
    keys = derive(number.to_bytes(16, "big"))
    return Offer(f"p{number}", keys, f"words-of-{number}", number, frozenset({"exec"}), expires_at)


def guess(offers: Offers, words: str, nameplate: int, stream: str, now: float) -> bytes:
    device = CodeDevice(words, stream)
    answer = offers.code_started(stream, nameplate, device.start(), now)
    reply = offers.code_confirmed(stream, device.host_message(answer), b"{}", now)
    return device.document(reply)[1]


def test_a_right_code_names_the_offer_by_its_key() -> None:
    offers = Offers()
    offers.add(offer(1))
    keys = derive(guess(offers, "words-of-1", 1, "s", 0.0))
    found = offers.find(keys.offer_id, 1.0)
    assert found is not None
    assert (found[0].pairing_id, found[1]) == ("p1", keys.psk)
    offers.end(found[0])
    assert offers.find(keys.offer_id, 1.0) is None
    assert offers.find(derive((1).to_bytes(16, "big")).offer_id, 1.0) is None


def test_a_wrong_code_burns_and_the_right_one_comes_too_late() -> None:
    offers = Offers()
    offers.add(offer(1))
    with pytest.raises(WrongGuess) as caught:
        guess(offers, "other-words", 1, "s", 0.0)
    assert caught.value.offer.pairing_id == "p1"
    with pytest.raises(CodeNoise):
        guess(offers, "words-of-1", 1, "s2", 0.0)


def test_two_guesses_at_one_time_are_still_one() -> None:
    offers = Offers()
    offers.add(offer(1))
    first, second = CodeDevice("wrong", "a"), CodeDevice("words-of-1", "b")
    answer_a = offers.code_started("a", 1, first.start(), 0.0)
    answer_b = offers.code_started("b", 1, second.start(), 0.0)
    with pytest.raises(WrongGuess):
        offers.code_confirmed("a", first.host_message(answer_a), b"{}", 0.0)
    with pytest.raises(CodeNoise):
        offers.code_confirmed("b", second.host_message(answer_b), b"{}", 0.0)


def test_exchanges_and_offers_are_bounded_and_run_out() -> None:
    offers = Offers()
    for number in range(1, MAX_OFFERS + 1):
        offers.add(offer(number))
    with pytest.raises(Refused):
        offers.add(offer(99))
    for number in range(MAX_EXCHANGES):
        offers.code_started(f"s{number}", 1, CodeDevice("x", f"s{number}").start(), 0.0)
    with pytest.raises(CodeNoise, match="too many"):
        offers.code_started("more", 1, CodeDevice("x", "more").start(), 0.0)
    assert offers.expire(61.0) == []
    offers.code_started("again", 1, CodeDevice("x", "again").start(), 62.0)
    assert len(offers.expire(100.0)) == MAX_OFFERS
    assert offers.live(0.0) == []


class OffersMachine(RuleBasedStateMachine):
    """Noise, guesses, uses and time in any order; a model says which offers must live."""

    def __init__(self) -> None:
        super().__init__()
        self.offers = Offers()
        self.alive: dict[int, float] = {}
        self.now = 0.0
        self.streams = 0
        self.number = 0

    @rule()
    def add(self) -> None:
        if len(self.alive) < 4:
            self.number += 1
            self.offers.add(offer(self.number, self.now + 50))
            self.alive[self.number] = self.now + 50

    @rule(seconds=st.sampled_from([1.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        over = {o.nameplate for o in self.offers.expire(self.now)}
        assert over == {n for n, end in self.alive.items() if end <= self.now}
        self.alive = {n: end for n, end in self.alive.items() if end > self.now}

    @rule(data=st.data(), raw=st.binary(max_size=40))
    def noise(self, data: Any, raw: bytes) -> None:
        self.streams += 1
        nameplate = data.draw(st.integers(0, self.number + 1))
        for step in (
            lambda: self.offers.code_started(f"s{self.streams}", nameplate, raw, self.now),
            lambda: self.offers.code_confirmed(f"s{self.streams}", raw, b"{}", self.now),
        ):
            with pytest.raises(CodeNoise):
                step()
        assert self.offers.find(raw[:8].ljust(8, b"\0"), self.now) is None

    @rule(data=st.data(), right=st.booleans())
    def try_a_code(self, data: Any, right: bool) -> None:
        if not self.alive:
            return
        number = data.draw(st.sampled_from(sorted(self.alive)))
        self.streams += 1
        words = f"words-of-{number}" if right else "wrong"
        if right:
            guess(self.offers, words, number, f"s{self.streams}", self.now)
            return
        with pytest.raises(WrongGuess):
            guess(self.offers, words, number, f"s{self.streams}", self.now)
        del self.alive[number]

    @rule(data=st.data())
    def use(self, data: Any) -> None:
        if not self.alive:
            return
        number = data.draw(st.sampled_from(sorted(self.alive)))
        found = self.offers.find(offer(number).keys.offer_id, self.now)
        assert found is not None
        self.offers.end(found[0])
        del self.alive[number]

    @invariant()
    def exactly_the_living_live(self) -> None:
        assert {o.nameplate for o in self.offers.live(self.now)} == set(self.alive)


TestOffersMachine = OffersMachine.TestCase
TestOffersMachine.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
