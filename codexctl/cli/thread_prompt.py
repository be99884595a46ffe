"""What a person says to a thread: from the arguments, standard input and files."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from codexctl.errors import UsageError

MAX_PROMPT_BYTES = 1 << 20


def read_prompt(words: Sequence[str], files: Sequence[str]) -> str:
    """The words, with `-` for standard input, and then the files; parts have a blank line between.

    UsageError where a file cannot be read, something is not UTF-8, or it is too long.
    """
    parts: list[str] = []
    if list(words) == ["-"]:
        parts.append(_decode(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "standard input"))
    elif words:
        parts.append(" ".join(words))
    for path in files:
        if path == "-":
            parts.append(_decode(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "standard input"))
            continue
        try:
            with open(path, "rb") as file:
                parts.append(_decode(file.read(MAX_PROMPT_BYTES + 1), path))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
    text = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if len(text.encode()) > MAX_PROMPT_BYTES:
        raise UsageError(
            f"the text has more than {MAX_PROMPT_BYTES >> 20} MiB",
            hint="copy it to the host as a file (codexctl cp) and name it in the prompt",
        )
    return text


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if len(data) > MAX_PROMPT_BYTES:
            return data.decode(errors="ignore")  # it is too long in any case
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})") from None
