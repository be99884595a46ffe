"""What the scripted model does is in what the person says: the first word of their last message."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support.codex import Item, Request, run_command, say

MCP_SERVER = Path(__file__).parent / "mcp_server.py"
FEATURES = f"""\
[features]
request_permissions_tool = true
default_mode_request_user_input = true
[mcp_servers.greeter]
command = {json.dumps(sys.executable)}
args = [{json.dumps(str(MCP_SERVER))}]
"""
_QUESTION = {
    "id": "color", "header": "Color", "question": "Which?",
    "options": [{"label": "red", "description": "r"}, {"label": "blue", "description": "b"}],
}  # fmt: skip


def _text(item: Item) -> str:
    return "".join(str(part.get("text", "")) for part in item.get("content", []))


def said(request: Request) -> tuple[str, list[str]]:
    """The person's last message, and what the tools gave since."""
    text = ""
    given: list[str] = []
    for item in request["input"]:
        if item.get("role") == "user" and not _text(item).startswith("<"):
            text, given = _text(item), []
        elif item.get("type") == "function_call_output":
            given.append(json.dumps(item["output"]))
    return text, given


def _call(name: str, arguments: object, **more: str) -> Item:
    item = {"type": "function_call", "id": f"f-{name}", "call_id": name, "name": name}
    return {**item, "arguments": json.dumps(arguments), **more}


def script(request: Request) -> list[Item]:
    """`ask CMD` needs an approval, `run CMD` none; other words ask otherwise, or it talks."""
    text, given = said(request)
    word, _, rest = text.partition(" ")
    if given:
        return [say(f"it gave {given[-1]}")]
    if word == "ask":
        return [run_command(rest, sandbox_permissions="require_escalated", justification="must")]
    if word == "run":
        return [run_command(rest)]
    if word == "patch":
        body = f"*** Begin Patch\n*** Add File: {rest}\n+new\n*** End Patch"
        return [run_command(f"apply_patch <<'EOF'\n{body}\nEOF")]
    if word == "question":
        return [_call("request_user_input", {"questions": [_QUESTION]})]
    if word == "permissions":
        wanted = {"reason": "net", "permissions": {"network": {"enabled": True}}}
        return [_call("request_permissions", wanted)]
    if word == "greet":
        return [_call("greet", {}, namespace="mcp__greeter")]
    return [say(f"heard {text}")]
