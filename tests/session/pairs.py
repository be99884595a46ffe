"""Two ends of a session in memory, with a path between them that a test may damage."""

from __future__ import annotations

from codexctl.noise.handshake import Initiator, Responder
from codexctl.noise.keys import PrivateKey
from codexctl.noise.suites import CHACHA
from codexctl.noise.transport import Transport
from codexctl.session.core import Event, Session
from codexctl.wire.relay import Buffer

STREAM = "0b1f7f7e-5a5c-4f0e-9a43-1d2c3b4a5968"


def transports() -> tuple[Transport, Transport]:
    """The device's and the host's end of one finished handshake."""
    device, host = PrivateKey.generate(), PrivateKey.generate()
    initiator = Initiator(CHACHA, device, host.public_bytes, b"")
    responder = Responder(CHACHA, host, b"")
    responder.read_first(initiator.write_first())
    message, host_side = responder.write_second()
    _, device_side = initiator.read_second(message)
    return device_side, host_side


def sessions(now: float = 0.0) -> tuple[Session, Session]:
    """A device's and a host's session on their first path."""
    device, host = transports()
    return (
        Session(STREAM, device, now, is_device=True),
        Session(STREAM, host, now, is_device=False),
    )


def take(session: Session, now: float = 0.0) -> list[Buffer]:
    """What a session wants to send now."""
    session.flush(now)
    out = list(session.outbox)
    session.outbox.clear()
    return out


def deliver(source: Session, sink: Session, now: float = 0.0) -> list[Event]:
    """Carry everything from one end to the other; what happened there."""
    return [event for message in take(source, now) for event in sink.receive(message, now)]


def reconnect(device: Session, host: Session, now: float = 0.0) -> None:
    """A new path: the device says resume, the host answers, both send the rest."""
    for end in (device, host):
        end.records.path_lost()
    device.records.path_opened(now)
    host.records.path_opened(now)
