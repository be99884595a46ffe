"""A value that must not be shown: repr, str and format hide it, comparing takes equal time."""

from __future__ import annotations

import hmac


class Secret:
    """A text that is revealed only by `reveal()`; safe to keep in dataclasses that are logged."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "(hidden)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format("(hidden)", spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a secret is not pickled")
