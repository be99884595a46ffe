"""Checks every request and answer of the fake against DigitalOcean's own API description.

The description is not part of this repository: it is read from ../shared/data beside the checkout
when that folder is there, and without it the fake checks nothing but itself.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

DESCRIPTION = (
    Path(__file__).parents[2] / ".." / "shared" / "data" / "digitalocean-openapi-subset.json"
)
HOST = "https://api.digitalocean.com"
JSON = "application/json"

needs_description = pytest.mark.skipif(
    not DESCRIPTION.exists(), reason="DigitalOcean's API description is not beside the checkout"
)


@dataclass
class _Request:
    """What openapi-core wants of a request."""

    method: str
    target: str
    body: bytes | None
    content_type: str
    authorization: str
    parameters: Any = field(init=False)
    host_url: str = HOST

    def __post_init__(self) -> None:
        from openapi_core.datatypes import RequestParameters
        from werkzeug.datastructures import Headers, ImmutableMultiDict

        query = parse_qsl(urlsplit(self.target).query, keep_blank_values=True)
        self.parameters = RequestParameters(
            query=ImmutableMultiDict(query),
            header=Headers({"Authorization": self.authorization}),
        )

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


@dataclass
class _Response:
    status_code: int
    data: bytes
    content_type: str
    headers: Mapping[str, str]


@functools.cache
def _api() -> Any:
    from openapi_core import OpenAPI

    return OpenAPI.from_dict(_description())


@functools.cache
def _description() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(DESCRIPTION.read_text())
    # It calls a key's id read-only, which openapi-core then refuses in the path of a request.
    for name in ("ssh_key_id", "ssh_key_fingerprint"):
        del value["components"]["schemas"][name]["readOnly"]
    return value


def _resolve(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, or what its reference points at."""
    if "$ref" not in schema:
        return schema
    node: Any = _description()
    for part in schema["$ref"].removeprefix("#/").split("/"):
        node = node[part]
    resolved: Mapping[str, Any] = node
    return resolved


def _properties(schema: Mapping[str, Any]) -> set[str]:
    """Every property that a schema knows, through references and combinations."""
    schema = _resolve(schema)
    names = set(schema.get("properties", {}))
    for word in ("allOf", "oneOf", "anyOf"):
        for part in schema.get(word, []):
            names |= _properties(part)
    return names


@functools.lru_cache(maxsize=4096)
def violations(
    method: str,
    target: str,
    body: bytes,
    content_type: str,
    authorization: str,
    status: int,
    answer: bytes,
    *,
    check_answer: bool,
) -> tuple[str, ...]:
    """What the description finds wrong with this exchange; () without the description."""
    if not DESCRIPTION.exists():
        return ()
    where = f"{method} {target}"
    request = _Request(method.lower(), target, body or None, content_type or JSON, authorization)
    found = [
        f"{where}: request: {error!r} {error.__cause__ or ''}"
        for error in _api().iter_request_errors(request)
    ]
    if not found:
        found += [f"{where}: the API knows no {name}" for name in _unknown(request, body)]
    if check_answer and not found:
        response = _Response(status, answer, JSON, {"Content-Type": JSON})
        found += [
            f"{where}: answer {status}: {error!r} {error.__cause__ or ''}"
            for error in _api().iter_response_errors(request, response)
        ]
    return tuple(found)


def _operation(method: str, path: str) -> dict[str, Any]:
    """The description of this call; {} where there is none. Literal paths win over templates."""
    for template in sorted(_description()["paths"], key=lambda text: text.count("{")):
        pattern = re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path):
            item: dict[str, Any] = _description()["paths"][template]
            operation: dict[str, Any] = item.get(method, {})
            return operation
    return {}


def _unknown(request: _Request, body: bytes) -> list[str]:
    """Members of the query and of the body that the description does not name."""
    operation = _operation(request.method, request.path)
    known = {_resolve(parameter)["name"] for parameter in operation.get("parameters", [])}
    unknown = [f"query parameter {name}" for name in request.parameters.query if name not in known]
    content = operation.get("requestBody", {}).get("content", {})
    if body and JSON not in content:
        unknown.append("body of this call")
    elif body:
        allowed = _properties(content[JSON]["schema"])
        unknown += [f"property {name}" for name in json.loads(body) if name not in allowed]
    return unknown
