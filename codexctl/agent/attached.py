"""A device at the app-server itself, with the official terminal UI: each message is looked at.

The rules are in codexctl.agent.attach_rules. Beside them: a thread that moves, or has moved, takes
no turn; folders are those of the policy; an answer to a question of the agent's is in the audit log
and in the question's record, under the device's name. Who drives a thread here watches it.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed

from codexctl.agent import modes
from codexctl.agent.attach_rules import Rules, decision, trusted
from codexctl.agent.handoff.journal import check_may_act
from codexctl.agent.mode_order import JOINING
from codexctl.agent.socket import MAX_MESSAGE_BYTES, QUEUED_MESSAGES, SocketMessages, connected
from codexctl.errors import CodexctlError, Refused
from codexctl.session.channel import Peer
from codexctl.state.database import now_s

if TYPE_CHECKING:
    from codexctl.host.context import HostContext

POLICIES = ("threads.sandbox", "threads.approval")
REFUSED = -32600  # JSON-RPC: an invalid request
_ACTING = frozenset({
    *JOINING, "turn/start", "turn/steer", "review/start", "thread/unarchive",
    "thread/compact/start", "thread/rollback", "thread/revert", "thread/goal/set",
})  # fmt: skip
_IN_A_FOLDER = frozenset({*JOINING, "turn/start"})
_SHOWING = frozenset({"thread/resume", "turn/start", "turn/steer"})


@asynccontextmanager
async def gate(context: HostContext, peer: Peer) -> AsyncIterator[str]:
    """The path of a socket that is the app-server's for this device. AgentUnavailable."""
    agent = context.agent
    behind = await agent.socket()

    async def serve(client: ServerConnection) -> None:
        try:
            async with connected(behind) as server, asyncio.TaskGroup() as tasks:
                inward = tasks.create_task(_Attached(context, peer, client, server).run())
                async for text in server:
                    await client.send(text)
                inward.cancel()
        except* (OSError, ConnectionClosed):
            pass  # one of the two is gone; the other one learns it as this ends

    # Short, for a socket's path has 107 bytes; and nobody else's to open.
    with tempfile.TemporaryDirectory(prefix="codexctl-") as folder:
        path = os.path.join(folder, "gate")
        async with unix_serve(
            serve, path, compression=None, max_size=MAX_MESSAGE_BYTES, max_queue=QUEUED_MESSAGES,
            ping_interval=None, close_timeout=1,
        ):  # fmt: skip
            yield path


class _Attached:
    """What comes from one client."""

    def __init__(
        self, context: HostContext, peer: Peer, client: ServerConnection, server: SocketMessages
    ) -> None:
        self._context, self._peer = context, peer
        self._client, self._server = client, server
        (sandbox, _), (approval, _) = map(context.policy.choice, POLICIES)
        self._rules = Rules(sandbox, approval)
        self._watched = ExitStack()  # the thread that is on the screen

    async def run(self) -> None:
        """Until the client leaves."""
        with self._watched:
            await self._pass_on()
        raise ConnectionResetError("the client has left")

    async def _pass_on(self) -> None:
        async for message in self._client:
            try:
                value = json.loads(message)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                await self._client.close(1007, "not a JSON-RPC message")
                break
            method, params = value.get("method"), value.get("params")
            params = params if isinstance(params, dict) else {}
            try:
                if isinstance(method, str):
                    value = await self._request(value, method, params)
                elif "result" in value and not self._answer(value.get("id"), value["result"]):
                    continue
            except CodexctlError as error:
                await self._refuse(value, str(method), error)
                continue
            await self._server.send(json.dumps(value))

    async def _refuse(self, value: dict[str, Any], method: str, error: CodexctlError) -> None:
        self._context.note("attach-agent", self._peer, method[:60], "denied", reason=str(error))
        if "id" in value and "method" in value:
            told = {"code": REFUSED, "message": f"codexctl: {error}"}
            await self._client.send(json.dumps({"id": value["id"], "error": told}))

    async def _request(
        self, value: dict[str, Any], method: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        """The request as it goes on. Refused and its kinds."""
        reason = self._rules.refusal(method, params)
        if reason is not None:
            raise Refused(reason)
        for folder in trusted(method, params) or ():
            # What a trusted folder's own settings run is the person's word, as an approval is.
            self._check_folder(folder)
            self._context.record("attach-agent", self._peer, f"trust {folder}", "answered")
        thread = params.get("threadId")
        if method in _ACTING and isinstance(thread, str):
            check_may_act(self._context.home, thread)
        if method in _IN_A_FOLDER:
            await self._check_folders(method, params)
        if isinstance(thread, str):
            self._shows(method, thread)
        if method in JOINING and not self._rules.hold_nothing_back:
            return {**value, "params": {**params, **await self._modes(method, params)}}
        return value

    def _shows(self, method: str, thread: str) -> None:
        if method in _SHOWING:
            self._watched.close()
            self._watched.enter_context(
                self._context.agent.watched_by(self._peer.device_id, thread)
            )
        elif method == "thread/unsubscribe":
            self._watched.close()

    async def _check_folders(self, method: str, params: dict[str, Any]) -> None:
        """Refused where devices may not work in a folder that is named, or is the thread's."""
        agent, workspace = self._context.agent, self._context.workspace
        cwd, roots = params.get("cwd"), params.get("runtimeWorkspaceRoots")
        thread = params.get("threadId")
        if cwd is None and method != "thread/start":
            cwd = agent.store.facts(str(thread)).get("cwd")
            if cwd is None:
                found = await agent.call("thread/read", {"threadId": thread})
                cwd = (found.get("thread") or {}).get("cwd")
        for name in (cwd or workspace, *(roots if isinstance(roots, list) else ())):
            self._check_folder(os.path.join(workspace, str(name)))

    def _check_folder(self, path: str) -> None:
        real = os.path.realpath(path)
        if not real.startswith(os.path.realpath(self._context.home.join("worktrees")) + os.sep):
            self._context.policy.check_folder(real, self._context.workspace)

    async def _modes(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        """Sandbox and approvals where the client leaves them open, within the policy."""
        agent = self._context.agent
        if method == "thread/start":
            cwd = params.get("cwd") or self._context.workspace
            own = await modes.own_of_host(agent, str(cwd))
        else:
            thread = str(params.get("threadId"))
            status = (agent.statuses.get(thread) or {}).get("type", "notLoaded")
            if method == "thread/resume" and status != "notLoaded":
                # It goes on as it is; what is asked all the same is lowered.
                asked = self._rules.modes(params, None, None)
                return {name: mode for name, mode in asked.items() if params.get(name) is not None}
            own = modes.own_of_thread(agent, thread)
        return self._rules.modes(params, *own)

    def _answer(self, id: object, result: object) -> bool:
        """Keep who has decided what, before the app-server hears of it. Refused where it cannot.

        False where somebody was quicker: the app-server has an answer.
        """
        agent, chosen = self._context.agent, decision(result)
        if agent.questions.is_answered(id):
            return False
        asked = next((one for one in agent.pending() if one.request_id == id), None)
        if asked is None:
            self._context.record("approval", self._peer, f"request {id}", chosen)
            return True
        what = str(asked.shown.get("command") or asked.shown.get("patch") or asked.kind)
        self._context.record(
            "approval", self._peer, what, chosen,
            thread=asked.thread, approval=asked.id, shown=asked.hash,
            where=str(asked.shown.get("cwd") or ""),
        )  # fmt: skip
        ended = replace(
            asked, state="answered", decision=chosen, decided_by=self._peer.name, decided_at=now_s()
        )
        agent.append([*agent.questions.answered(ended)])
        return True
