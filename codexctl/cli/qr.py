"""QR codes in the terminal and as PNG.

Two rows of modules are one line of half blocks. With colour the code is black on white by itself,
whatever the theme. Without colour (NO_COLOR, a file) only foreground and background are known: a
dark theme is assumed, and `invert` is for a light one.
"""

from __future__ import annotations

import os
from typing import IO, Any

from codexctl.cli.output import colour_wanted, notice

QUIET_ZONE = 4  # light modules around the code, as the standard asks
PNG_PIXELS = 8  # a module
# Of the 256-colour palette the cube's black and white, which no theme redefines.
BLACK_ON_WHITE = "\x1b[38;5;16;48;5;231m"
WHITE_ON_BLACK = "\x1b[38;5;231;48;5;16m"
RESET = "\x1b[0m"
HALF_BLOCKS = {(0, 0): " ", (1, 0): "\u2580", (0, 1): "\u2584", (1, 1): "\u2588"}


def render_qr(text: str, invert: bool = False, colour: bool = True) -> str:
    """Lines of half blocks, the quiet zone included; `qr_columns` wide."""
    rows = _modules(text)
    # Ink is what the blocks draw: dark modules, or on a dark theme without colour the light ones.
    ink = 1 if colour or invert else 0
    if len(rows) % 2:
        # Never drawn: the last line is the upper half alone.
        rows.append([1 - ink] * len(rows[0]))
    start = (WHITE_ON_BLACK if invert else BLACK_ON_WHITE) if colour else ""
    end = RESET if colour else ""
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        pairs = zip(upper, lower, strict=True)
        blocks = "".join(HALF_BLOCKS[top == ink, bottom == ink] for top, bottom in pairs)
        lines.append(f"{start}{blocks}{end}\n")
    return "".join(lines)


def qr_columns(text: str) -> int:
    """How wide `render_qr` of `text` is, in characters."""
    return len(_modules(text)[0])


def show_qr(text: str, stream: IO[str], *, invert: bool = False) -> None:
    """Write the code to `stream`, or a notice where its terminal is too narrow for it."""
    if stream.isatty():
        columns = os.get_terminal_size(stream.fileno()).columns
        needed = qr_columns(text)
        if columns < needed:
            notice(
                f"the QR code is {needed} columns wide and this terminal {columns}: "
                "widen it, or have an image: codexctl pair --show --png FILE"
            )
            return
    stream.write(render_qr(text, invert, colour_wanted(stream)))
    stream.flush()


def write_png(text: str, path: str) -> None:
    """Write the code as an image, mode 0600, since a pairing URL holds a token."""
    from io import BytesIO

    from codexctl.state.files import replace_file

    out = BytesIO()
    _make(text).save(out, kind="png", scale=PNG_PIXELS, border=QUIET_ZONE)
    replace_file(path, out.getvalue())


def _make(text: str) -> Any:
    import segno

    return segno.make_qr(text, error="l")


def _modules(text: str) -> list[list[int]]:
    """Rows of modules, 1 dark and 0 light, with the quiet zone."""
    return [list(row) for row in _make(text).matrix_iter(scale=1, border=QUIET_ZONE)]
