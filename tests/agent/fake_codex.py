"""A codex that misbehaves as FAKE_CODEX says; for its schema and version it asks the real one.

hang: no answer after the greeting. garbage: what is no message, for ever. stray: a little of it,
and notifications that nobody knows. mute: no greeting. ask: a command, at once. die: ends at its
start, with a reason. late: a turn that takes nothing any more, and ends when threads are listed.
talk: as many events as FAKE_CODEX_EVENTS says, as fast as they are taken.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

from websockets.asyncio.server import ServerConnection, unix_serve

MODE = os.environ["FAKE_CODEX"]


async def serve(connection: ServerConnection) -> None:
    async for text in connection:
        message = json.loads(text)
        method = message.get("method")
        if method == "initialize" and MODE == "mute":
            continue
        if method == "initialized" and MODE == "garbage":
            while True:
                await connection.send("\x00 this is no message {")
        if method == "initialized" and MODE == "stray":
            await connection.send("Warning: something")
            await connection.send('{"method":"new/thing","params":{"threadId":"t9","odd":[1.50]}}')
            await connection.send('{"method":"item/tool/call","id":7,"params":{}}')
        if method == "initialized" and MODE == "ask":
            await connection.send(
                '{"method":"item/commandExecution/requestApproval","id":7,'
                '"params":{"threadId":"t9","turnId":"u","itemId":"i","command":"ls"}}'
            )
        if (method, MODE) in (("initialized", "late"), ("thread/list", "late")):
            turn = {"threadId": "t9", "turn": {"id": "u", "status": "completed"}}
            event = "turn/started" if method == "initialized" else "turn/completed"
            await connection.send(json.dumps({"method": event, "params": turn}))
        if method in ("turn/steer", "turn/interrupt") and MODE == "late":
            refusal = {"code": -32600, "message": "no active turn"}
            await connection.send(json.dumps({"id": message["id"], "error": refusal}))
            continue
        if method == "initialized" and MODE == "talk":
            for number in range(int(os.environ["FAKE_CODEX_EVENTS"])):
                params = {"threadId": "t9", "turnId": "u", "itemId": f"m{number // 50}"}
                words = {"delta": "some words of a message that the agent is writing "}
                event = {"method": "item/agentMessage/delta", "params": params | words}
                await connection.send(json.dumps(event))
        if message.get("id") == 7:
            await connection.send(json.dumps({"method": "heard", "params": message}))
        elif "id" in message and not (MODE == "hang" and method != "initialize"):
            await connection.send(json.dumps({"id": message["id"], "result": {"data": []}}))


async def listen(path: str) -> None:
    async with unix_serve(serve, path):
        await asyncio.Event().wait()


def main() -> None:
    if sys.argv[1:2] == ["--version"] or "generate-json-schema" in sys.argv:
        sys.exit(subprocess.call([os.environ["REAL_CODEX"], *sys.argv[1:]]))
    if MODE == "die":
        sys.exit("Error: the config has a mistake in line 3")
    asyncio.run(listen(sys.argv[-1].removeprefix("unix://")))


if __name__ == "__main__":
    main()
