"""Who may do what: an owner anything of its own, a host and a device what is of their environment.

What a caller may not know of is not found, word for word as what does not exist.
"""

from __future__ import annotations

from codexctl.relay.calls import Failure, checked_environment, not_found
from codexctl.relay.effects import DEVICE, ENROLMENT, HOST, OWNER, Principal, RoomKey
from codexctl.relay.schema import Token


def owner(caller: Principal) -> Principal:
    if caller.kind == ENROLMENT:
        raise Failure(403, "forbidden", "a single-use token has to be exchanged first")
    if caller.kind != OWNER:
        raise Failure(
            403,
            "forbidden",
            f"a {caller.kind}'s token is for its own environment and nothing else",
            "use an owner's token",
        )
    return caller


def served(caller: Principal, environment: str) -> RoomKey:
    """An environment for its host's side: any of an owner's, the one of a host's own token."""
    if caller.kind == HOST:
        if caller.environment_id != environment:
            raise not_found()
    else:
        owner(caller)
    return RoomKey(caller.owner, checked_environment(environment))


def may_end(caller: Principal, token: Token) -> bool:
    if token.owner != caller.owner or token.kind == OWNER:
        return False
    if caller.kind == HOST:
        return token.kind == DEVICE and token.environment_id == caller.environment_id
    return caller.kind == OWNER


def reachable(caller: Principal, environment: str) -> RoomKey:
    if caller.kind != OWNER and caller.environment_id != environment:
        raise not_found()
    return RoomKey(caller.owner, checked_environment(environment))
