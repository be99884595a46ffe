"""Calls and answers of the fake DigitalOcean, and its refusals in DigitalOcean's format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

Body = dict[str, Any]


@dataclass
class Answer:
    status: int
    body: Body | bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    as_described: bool = True
    """False: wrong on purpose, so it is not held against the API's description."""

    def encoded(self) -> bytes:
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def refusal(status: int, word: str, message: str, **headers: str) -> Answer:
    body = {"id": word, "message": message, "request_id": "4d9d8375-3c56-4925-a3e7-eb137fed17e9"}
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass(frozen=True)
class Call:
    method: str
    target: str
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


def missing() -> Answer:
    return refusal(404, "not_found", "The resource you were accessing could not be found.")


def unprocessable(message: str) -> Answer:
    return refusal(422, "unprocessable_entity", message)
