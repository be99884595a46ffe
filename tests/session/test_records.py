"""Records over bad paths: never a wrong byte, never a byte twice, and the reason when it ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.session import records
from codexctl.session.core import DataArrived, Session
from codexctl.session.records import (
    ACK_DELAY_S,
    DEAD_S,
    FAULTY_PATHS,
    HEARTBEAT_S,
    KEPT_BYTES,
    PathFault,
    SessionOver,
    reset_error,
)
from codexctl.wire import relay
from codexctl.wire.relay import Ack, Data, Frame, Heartbeat, Reset, Resume
from tests.session.pairs import STREAM, deliver, reconnect, sessions, take


def opened() -> tuple[Session, Session, int]:
    device, host = sessions()
    channel = device.open("test", {})
    deliver(device, host)
    host.accept(channel, {})
    deliver(host, device)
    return device, host, channel


def received(events: list[object]) -> bytes:
    return b"".join(bytes(e.data) for e in events if isinstance(e, DataArrived))


def frame(body: relay.Body, ack: int = 0) -> bytes:
    return relay.encode(Frame(STREAM, body, ack))


def kinds(messages: list[relay.Buffer]) -> list[str]:
    return [type(relay.decode(m).body).__name__ for m in messages]


def test_what_was_lost_with_a_path_is_sent_again_byte_for_byte() -> None:
    device, host, channel = opened()
    host.data(channel, 1, b"kept", 0.0)
    lost = take(host)
    reconnect(device, host)
    deliver(device, host)
    again = take(host)
    assert kinds(again) == ["Resume", "Data"]
    assert bytes(again[1]) == bytes(lost[0])
    assert received([e for m in again for e in device.receive(m, 0.0)]) == b"kept"


@pytest.mark.parametrize("body", [Heartbeat(), Ack(), Data(1, b"x" * 32)])
def test_a_device_that_slept_through_the_loss_of_its_path_is_told(body: relay.Body) -> None:
    device, host, channel = opened()
    host.records.path_lost()
    host.records.path_opened(0.0)  # as the host does for whatever comes on this stream
    with pytest.raises(PathFault, match="did not begin with resume"):
        host.receive(frame(body), 0.0)
    # Its new path carries all of what waited.
    host.data(channel, 1, b"kept", 0.0)
    reconnect(device, host)
    deliver(device, host)
    assert received(deliver(host, device)) == b"kept"


def test_nothing_is_sent_on_a_new_path_before_the_peers_resume() -> None:
    device, host, channel = opened()
    reconnect(device, host)
    host.data(channel, 1, b"later", 0.0)
    assert take(host) == []
    device.data(channel, 0, b"up", 0.0)
    assert kinds(take(device)) == ["Resume"]


def test_a_record_that_arrived_is_not_sent_again() -> None:
    device, host, channel = opened()
    host.data(channel, 1, b"one", 0.0)
    deliver(host, device)
    reconnect(device, host)
    deliver(device, host)
    assert kinds(take(host)) == ["Resume"]


def test_a_resume_on_a_path_thought_alive_is_a_new_path() -> None:
    device, host, channel = opened()
    host.data(channel, 1, b"x", 0.0)
    take(host)
    # The host never noticed that the device's path broke.
    device.records.path_lost()
    device.records.path_opened(0.0)
    deliver(device, host)
    assert received(deliver(host, device)) == b"x"


def test_a_duplicated_resume_does_not_make_the_ends_answer_each_other_for_ever() -> None:
    device, host, channel = opened()
    host.data(channel, 1, b"x", 0.0)
    take(host)
    reconnect(device, host)
    resume = take(device)[0]
    for _ in range(3):
        host.receive(resume, 0.0)
    for message in take(host):
        device.receive(message, 0.0)
    assert "Resume" not in kinds(take(device))


@pytest.mark.parametrize("damage", [lambda m: m[:-1] + bytes((m[-1] ^ 1,)), lambda m: m[:-20]])
def test_a_damaged_record_faults_the_path_and_arrives_whole_on_the_next(damage: object) -> None:
    device, host, channel = opened()
    host.data(channel, 1, b"precious", 0.0)
    message = bytes(take(host)[0])
    with pytest.raises(PathFault):
        device.receive(damage(message), 0.0)  # type: ignore[operator]
    reconnect(device, host)
    deliver(device, host)
    assert received(deliver(host, device)) == b"precious"


def test_a_relay_that_always_damages_is_named_in_the_end() -> None:
    device, _, _ = opened()
    forged = frame(Data(device.records._expected, bytes(40)))
    for _ in range(FAULTY_PATHS - 1):
        with pytest.raises(PathFault):
            device.receive(forged, 0.0)
    with pytest.raises(SessionOver, match="the relay damages what it carries"):
        device.receive(forged, 0.0)


def test_a_replayed_record_is_ignored() -> None:
    device, host, channel = opened()
    host.data(channel, 1, b"once", 0.0)
    message = take(host)[0]
    assert received(device.receive(message, 0.0)) == b"once"
    assert device.receive(message, 0.0) == []


def test_swapped_records_are_put_in_order() -> None:
    device, host, channel = opened()
    for text in (b"1", b"2", b"3"):
        host.data(channel, 1, text, 0.0)
        host.flush(0.0)
    first, second, third = take(host)
    assert device.receive(third, 0.0) == []
    assert device.receive(second, 0.0) == []
    assert received(device.receive(first, 0.0)) == b"123"


def test_a_forged_record_ahead_costs_nothing_but_a_resend() -> None:
    device, host, channel = opened()
    host.data(channel, 1, b"1", 0.0)
    host.flush(0.0)
    host.data(channel, 1, b"2", 0.0)
    host.flush(0.0)
    first, second = take(host)
    sequence = relay.decode(second).body.seq  # type: ignore[union-attr]
    device.receive(frame(Data(sequence, bytes(40))), 0.0)
    assert received(device.receive(first, 0.0)) == b"1"
    assert received(device.receive(second, 0.0)) == b"2"


def test_a_gap_beyond_the_window_faults_the_path() -> None:
    device, _, _ = opened()
    with pytest.raises(PathFault, match="lost a record"):
        device.receive(frame(Data(1000, bytes(40))), 0.0)


def test_a_gap_that_stays_faults_the_path_though_heartbeats_come() -> None:
    device, host, channel = opened()
    for text in (b"1", b"2"):
        host.data(channel, 1, text, 0.0)
        host.flush(0.0)
    _, second = take(host)
    device.receive(second, 0.0)
    for step in range(1, 20):
        now = step * 0.5
        device.receive(frame(Heartbeat()), now)
        if now >= DEAD_S:
            with pytest.raises(PathFault):
                device.records.tick(now)
            return
        device.records.tick(now)


def test_a_swallowed_last_record_is_noticed_by_its_sender() -> None:
    _, host, channel = opened()
    host.data(channel, 1, b"never arrives", 1.0)
    take(host, 1.0)
    host.receive(frame(Heartbeat()), 9.0)
    with pytest.raises(PathFault):
        host.records.tick(1.0 + DEAD_S)


def test_acks_come_late_when_little_and_at_once_when_much_arrived() -> None:
    device, host, channel = opened()
    take(device)
    host.data(channel, 1, b"x", 1.0)
    for message in take(host, 1.0):
        device.receive(message, 1.0)
    assert take(device, 1.0) == []
    device.records.tick(1.0 + ACK_DELAY_S)
    assert kinds(take(device, 1.1)) == ["Ack"]
    for _ in range(records.ACK_RECORDS):
        host.data(channel, 1, b"y", 2.0)
        host.flush(2.0)
    for message in take(host, 2.0):
        device.receive(message, 2.0)
    assert kinds(take(device, 2.0)) == ["Ack"]
    assert host.records.unacked > 0


def test_kept_ciphertext_is_bounded_and_acks_make_room() -> None:
    device, host, channel = opened()
    device.grant(channel, 15 << 20)
    deliver(device, host)
    block = bytes(1 << 20)
    taken = 0
    while size := host.data(channel, 1, block, 0.0):
        taken += size
    assert taken <= KEPT_BYTES
    assert host.records.room <= 0
    deliver(host, device)
    deliver(device, host)
    assert host.sendable(channel) > KEPT_BYTES // 2


def test_an_impossible_ack_faults_the_path() -> None:
    _, host, _ = opened()
    with pytest.raises(PathFault, match="more than was sent"):
        host.receive(frame(Ack(), ack=1000), 0.0)


def test_an_end_that_forgot_what_it_acked_ends_the_session() -> None:
    device, host, channel = opened()
    host.data(channel, 1, b"x", 0.0)
    deliver(host, device)
    device.records.tick(1.0)
    deliver(device, host, 1.0)
    with pytest.raises(SessionOver, match="lost what it had received"):
        host.receive(frame(Resume(0)), 1.0)


def test_silence_is_answered_by_heartbeats_and_ends_a_path_in_under_ten_seconds() -> None:
    device, host, _ = opened()
    device.records.tick(ACK_DELAY_S)
    deliver(device, host)
    device.records.tick(HEARTBEAT_S + 0.1)
    assert kinds(take(device, HEARTBEAT_S + 0.1)) == ["Heartbeat"]
    assert DEAD_S < 10
    with pytest.raises(PathFault, match="nothing was heard"):
        device.records.tick(DEAD_S + 0.1)


def test_deadlines_say_when_a_tick_is_due() -> None:
    device, host, channel = opened()
    assert device.records.deadline() is not None
    host.data(channel, 1, b"x", 0.0)
    deliver(host, device)
    assert device.records.deadline() == pytest.approx(ACK_DELAY_S)
    device.records.path_lost()
    assert device.records.deadline() is None
    device.records.tick(1000.0)


@pytest.mark.parametrize("body", [relay.Handshake(b"x"), None])
def test_a_frame_that_has_no_place_here_faults_the_path(body: relay.Body | None) -> None:
    device, _, _ = opened()
    message = frame(body) if body else relay.encode(Frame("another", Heartbeat()))
    with pytest.raises(PathFault):
        device.receive(message, 0.0)


@pytest.mark.parametrize("name", ["peer-gone", "peer-slow", "busy", "limit", "path"])
def test_resets_that_time_cures_are_faults_of_the_path(name: str) -> None:
    error = reset_error(name)
    assert isinstance(error, PathFault)
    assert error.reported


@pytest.mark.parametrize("name", ["unknown-session", "revoked", "unpaired", "version: 2", "new"])
def test_resets_that_time_does_not_cure_end_the_session(name: str) -> None:
    device, _, _ = opened()
    with pytest.raises(SessionOver):
        device.receive(frame(Reset(name)), 0.0)


class Path:
    """A relay that drops, doubles, swaps, damages and replays, as drawn."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._old: list[bytes] = []

    def carry(self, messages: list[relay.Buffer]) -> list[bytes]:
        out: list[bytes] = []
        for message in map(bytes, messages):
            self._old.append(message)
            what = self._data.draw(st.sampled_from("kkkkkkdxs2r"))
            if what == "d":
                continue
            if what == "x":
                at = self._data.draw(st.integers(0, len(message) - 1))
                message = message[:at] + bytes((message[at] ^ 0x41,)) + message[at + 1 :]
            if what == "r":
                out.append(self._data.draw(st.sampled_from(self._old)))
            if what == "s" and out:
                out.insert(-1, message)
            else:
                out.append(message)
            if what == "2":
                out.append(message)
        return out


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_whatever_a_relay_does_no_wrong_byte_is_ever_delivered(data: st.DataObject) -> None:
    device, host, channel = opened()
    path = Path(data)
    sent = {host: bytearray(), device: bytearray()}
    got = {host: bytearray(), device: bytearray()}
    now = 0.0
    for _ in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.sampled_from([0.0, 0.1, 4.0]))
        for end in (device, host):
            text = data.draw(st.binary(max_size=40))
            sent[end] += text[: end.data(channel, 1, text, now)]
        broken = False
        for source, sink in ((device, host), (host, device)):
            for message in path.carry(take(source, now)):
                try:
                    got[sink] += received(list(sink.receive(message, now)))
                except PathFault:
                    broken = True
                    break
                except SessionOver:
                    assert sent[source].startswith(bytes(got[sink]))
                    return
        for source, sink in ((device, host), (host, device)):
            assert sent[source].startswith(bytes(got[sink]))
        if broken or data.draw(st.booleans()):
            reconnect(device, host, now)
    # On an honest path everything arrives.
    reconnect(device, host, now)
    for _ in range(6):
        for source, sink in ((device, host), (host, device)):
            try:
                got[sink] += received(deliver(source, sink, now))
            except SessionOver:
                return
    assert (got[host], got[device]) == (sent[device], sent[host])
