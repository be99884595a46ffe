"""Two official executors under one environment id: the newest wins, the older is told."""

from __future__ import annotations

from codexctl.relay.calls import Failure
from codexctl.relay.effects import RoomKey

KEPT = 8  # replaced keys of one environment


class ReplacedKeys:
    """Refuses an executor whose place a newer one has taken and still holds.

    It has a fresh key at each start and registers again whenever it is disconnected: two of them
    would throw each other out for ever. An official executor ends at this answer.
    """

    def __init__(self) -> None:
        self._replaced: dict[RoomKey, list[str]] = {}

    def admit(self, room: RoomKey, registered: str | None, public_key: str, online: bool) -> None:
        """`registered` is the key that the environment has now; `online` whether it is connected.

        Failure (409) for a key that was replaced.
        """
        if not online:
            self._replaced.pop(room, None)
            return
        replaced = self._replaced.setdefault(room, [])
        if public_key in replaced:
            raise Failure(
                409,
                "replaced",
                f"another executor has registered as {room.environment_id} since",
                "stop one of the two, or give it another --environment-id",
            )
        if registered is not None and registered != public_key:
            replaced.append(registered)
            del replaced[:-KEPT]
