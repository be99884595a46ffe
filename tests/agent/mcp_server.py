"""An MCP server on stdio with one tool, which asks the person for a name before it answers."""

from __future__ import annotations

import json
import sys
from typing import Any

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TOOL = {"name": "greet", "description": "greets", "inputSchema": {"type": "object"}}


def send(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main() -> None:
    called: object = None
    for line in sys.stdin:
        message = json.loads(line)
        method, id = message.get("method"), message.get("id")
        if method == "initialize":
            version = message["params"]["protocolVersion"]
            info = {"name": "greeter", "version": "1"}
            send(
                id=id,
                result={
                    "protocolVersion": version,
                    "capabilities": {"tools": {}},
                    "serverInfo": info,
                },
            )
        elif method == "tools/list":
            send(id=id, result={"tools": [TOOL]})
        elif method == "tools/call":
            called = id
            params = {"message": "Who are you?", "requestedSchema": SCHEMA, "mode": "form"}
            send(id="ask", method="elicitation/create", params=params)
        elif id == "ask":
            text = json.dumps(message.get("result") or message.get("error"))
            send(id=called, result={"content": [{"type": "text", "text": f"heard {text}"}]})
        elif id is not None:
            send(id=id, result={})


if __name__ == "__main__":
    main()
