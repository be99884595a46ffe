"""Whether what codexctl sends fits the schema that the installed codex generates. No I/O.

The part of JSON Schema that those files use, read more strictly in one point: a member that an
object's schema does not name is wrong, since a codex that does not know it would pass over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
MAX_DEPTH = 64  # of references, which may lead in a circle


def methods(requests: Schema) -> dict[str, Schema | None]:
    """The schema of the params of each method in a schema of client requests."""
    found: dict[str, Schema | None] = {}
    for variant in requests.get("oneOf") or ():
        members = variant.get("properties", {})
        for name in members.get("method", {}).get("enum") or ():
            found[str(name)] = members.get("params")
    return found


def fault(value: object, schema: object, root: Schema, where: str = "", depth: int = 0) -> str:
    """What of `value` does not fit, in a few words; empty where all does."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return ""
    if "$ref" in schema:
        return fault(value, _definition(root, str(schema["$ref"])), root, where, depth + 1)
    for part in schema.get("allOf") or ():
        if wrong := fault(value, part, root, where, depth + 1):
            return wrong
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            faults = [fault(value, part, root, where, depth + 1) for part in schema[choice]]
            if all(faults):
                return max(faults, key=len)
    if "enum" in schema and value not in schema["enum"]:
        return f"{where or 'it'} is none of {', '.join(map(str, schema['enum']))}"
    wanted = schema.get("type")
    names = wanted if isinstance(wanted, list) else [wanted] if wanted else []
    if names and not any(_is(value, str(name)) for name in names):
        return f"{where or 'it'} is no {' or '.join(map(str, names))}"
    if isinstance(value, Mapping):
        return _members(value, schema, root, where, depth)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            if wrong := fault(item, schema["items"], root, f"{where}[{index}]", depth + 1):
                return wrong
    return ""


def _is(value: object, name: str) -> bool:
    if isinstance(value, bool) and name in ("integer", "number"):
        return False
    return isinstance(value, _TYPES.get(name, (object,)))


def _members(
    value: Mapping[str, object], schema: Schema, root: Schema, where: str, depth: int
) -> str:
    known = schema.get("properties") or {}
    for name in schema.get("required") or ():
        if name not in value:
            return f"{where or 'it'} lacks {name}"
    for name, member in value.items():
        path = f"{where}.{name}".lstrip(".")
        if name in known:
            wrong = fault(member, known[name], root, path, depth + 1)
        elif known and not schema.get("additionalProperties"):
            wrong = f"{path} is not known"
        else:
            wrong = fault(member, schema.get("additionalProperties"), root, path, depth + 1)
        if wrong:
            return wrong
    return ""


def _definition(root: Schema, reference: str) -> object:
    found: object = root
    for name in reference.removeprefix("#/").split("/"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
