"""The processes of a host: each belongs to it, not to a connection; ended ones are kept a while."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from typing import Any

from codexctl.errors import Refused
from codexctl.host.process import TERM_AFTER_S, HostProcess
from codexctl.host.spawn import Launch

MAX_PROCESSES = 512
# Ended processes, for `ps` and for a reattach that wants the exit status.
FINISHED_KEPT = 100
FINISHED_S = 3600.0
# Of output that nobody has fetched, over all ended processes.
FINISHED_RING_BYTES = 16 << 20


class ProcessTable:
    """The processes of one host, running and lately ended."""

    def __init__(self) -> None:
        self._processes: dict[str, HostProcess] = {}
        self._finished: list[str] = []

    def __len__(self) -> int:
        return len(self._processes)

    def new_id(self) -> str:
        """An id for the next process."""
        while (id := secrets.token_hex(3)) in self._processes:
            pass
        return id

    def start(self, id: str, launch: Launch) -> HostProcess:
        """Start a process. Refused where too many run or the system cannot start it."""
        if sum(process.running for process in self._processes.values()) >= MAX_PROCESSES:
            raise Refused(
                f"{MAX_PROCESSES} processes run on this host, which is its limit",
                hint="see: codexctl ps",
            )
        process = HostProcess(id, launch, self._on_finished)
        process.start()
        self._processes[id] = process
        return process

    def get(self, id: object) -> HostProcess:
        """The process of this id, also one that ended lately. Refused where there is none."""
        process = self._processes.get(id) if isinstance(id, str) else None
        if process is None:
            raise Refused(
                f"there is no process {str(id)[:40]!r} on this host, or it ended long ago",
                hint="see: codexctl ps",
            )
        return process

    def rows(self) -> list[dict[str, Any]]:
        """What `ps` shows, oldest first."""
        self._expire()
        return [process.as_json() for process in self._processes.values()]

    def _on_finished(self, process: HostProcess) -> None:
        self._finished.append(process.id)
        self._expire()

    def _expire(self) -> None:
        kept = 0
        for id in reversed(self._finished):
            ring = self._processes[id].ring
            kept += len(ring)
            if kept > FINISHED_RING_BYTES:
                ring.clear()
        oldest = time.time() - FINISHED_S
        while self._finished:
            process = self._processes[self._finished[0]]
            fresh = process.ended_at is not None and process.ended_at > oldest
            if fresh and len(self._finished) <= FINISHED_KEPT:
                return
            del self._processes[self._finished.pop(0)]
            if process.attachment is None:
                process.forget()

    def hang_up_device(self, device_id: str) -> int:
        """End the commands that a device started, as when it is revoked; how many those are."""
        theirs = [
            process
            for process in self._processes.values()
            if process.running and process.launch.device_id == device_id
        ]
        for process in theirs:
            process.hang_up()
        return len(theirs)

    async def aclose(self, grace_s: float = TERM_AFTER_S) -> None:
        """End all: SIGHUP, SIGTERM, SIGKILL after at most `grace_s`; returns when all have ended.

        Cancelled, it has killed them and not waited.
        """
        running = [process for process in self._processes.values() if process.running]
        try:
            for process in running:
                process.hang_up()
                process.signal(signal.SIGTERM)
            async with asyncio.timeout(grace_s):
                for process in running:
                    await process.ended.wait()
        except TimeoutError:
            pass
        finally:
            for process in self._processes.values():
                process.forget()
        for process in running:
            await process.ended.wait()
