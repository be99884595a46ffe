"""QR codes are read back: the PNG, and the picture that a terminal makes of the half blocks."""

from __future__ import annotations

import io
import os
import pty
import re
import stat
import zlib

import pytest
import segno
import zxingcpp

from codexctl.cli.qr import QUIET_ZONE, qr_columns, render_qr, show_qr, write_png
from codexctl.wire.pairing_url import PairingOffer, format_url

URL = format_url(
    PairingOffer("https://relay.example.net", "e" * 36, bytes(32), "c", bytes(range(16)), "my box")
)
PIXELS = 3  # a module, in the rasters given to the decoder
UPPER, LOWER = {"\u2580", "\u2588"}, {"\u2584", "\u2588"}


def _decode(rows: list[list[int]]) -> str:
    """What a reader sees; rows hold 1 for dark."""
    pixels = bytearray()
    for row in rows:
        line = b"".join((b"\x00" if module else b"\xff") * PIXELS for module in row)
        pixels += line * PIXELS
    shape = (len(rows) * PIXELS, len(rows[0]) * PIXELS)
    # No inverting by the decoder: many phones do not invert either.
    found = zxingcpp.read_barcodes(memoryview(pixels).cast("B", shape), try_invert=False)
    assert len(found) == 1
    return str(found[0].text)


def _on_terminal(text: str, *, foreground_dark: bool) -> list[list[int]]:
    """The picture of half blocks on a terminal of that theme; SGR colours come before the theme."""
    rows: list[list[int]] = []
    for line in text.splitlines():
        ink_dark = foreground_dark
        if colours := re.match(r"\x1b\[38;5;(\d+);48;5;(\d+)m", line):
            ink_dark = int(colours[1]) < int(colours[2])
        blocks = re.sub(r"\x1b\[[0-9;]*m", "", line)
        rows += [[int((char in half) == ink_dark) for char in blocks] for half in (UPPER, LOWER)]
    return rows


@pytest.mark.parametrize("foreground_dark", [True, False], ids=["light theme", "dark theme"])
def test_colours_of_its_own_are_read_in_every_theme(foreground_dark: bool) -> None:
    assert _decode(_on_terminal(render_qr(URL), foreground_dark=foreground_dark)) == URL


def test_without_colour_a_dark_theme_is_assumed_and_invert_is_for_a_light_one() -> None:
    assert _decode(_on_terminal(render_qr(URL, colour=False), foreground_dark=False)) == URL
    light = render_qr(URL, invert=True, colour=False)
    assert _decode(_on_terminal(light, foreground_dark=True)) == URL
    assert "\x1b" not in light


def test_invert_swaps_the_colours() -> None:
    rows = _on_terminal(render_qr(URL, invert=True), foreground_dark=True)
    assert _decode([[1 - module for module in row] for row in rows]) == URL


def test_the_modules_are_segnos_with_a_full_quiet_zone() -> None:
    matrix = [list(row) for row in segno.make_qr(URL, error="l").matrix]
    size = len(matrix) + 2 * QUIET_ZONE
    rows = _on_terminal(render_qr(URL), foreground_dark=False)[:size]
    assert len(rows[0]) == size == qr_columns(URL)
    inner = slice(QUIET_ZONE, -QUIET_ZONE)
    assert [row[inner] for row in rows[inner]] == matrix
    assert not any(map(any, rows[:QUIET_ZONE] + rows[-QUIET_ZONE:]))
    assert not any(any(row[:QUIET_ZONE]) or any(row[-QUIET_ZONE:]) for row in rows)


def test_a_pairing_url_fits_a_terminal_of_eighty_columns() -> None:
    assert qr_columns(URL) <= 80
    assert render_qr(URL).count("\n") <= 40


def test_the_png_is_read_back_and_private(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "pair.png")
    write_png(URL, path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with open(path, "rb") as file:
        assert _decode(_png_rows(file.read())) == URL
    write_png("other", path)
    with open(path, "rb") as file:
        assert _decode(_png_rows(file.read())) == "other"


def _png_rows(data: bytes) -> list[list[int]]:
    """The pixels of a one-bit greyscale PNG, 1 dark; segno uses the filters none and up."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, width = 8, b"", 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width = int.from_bytes(body[:4], "big")
            assert body[8:10] == b"\x01\x00"
        elif kind == b"IDAT":
            packed += body
        at += 12 + size
    raw, stride = zlib.decompress(packed), 1 + (width + 7) // 8
    rows, line = [], bytes(stride - 1)
    for start in range(0, len(raw), stride):
        assert raw[start] in (0, 2)
        above = line if raw[start] == 2 else bytes(stride - 1)
        line = bytes(
            (a + b) & 0xFF for a, b in zip(raw[start + 1 : start + stride], above, strict=True)
        )
        bits = "".join(f"{byte:08b}" for byte in line)
        rows.append([1 - int(bit) for bit in bits[:width]])
    return rows


def test_a_file_gets_no_colour() -> None:
    out = io.StringIO()
    show_qr(URL, out)
    assert out.getvalue() == render_qr(URL, colour=False)


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_that_is_too_narrow_is_told(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((columns, 24)))
    reader, writer = pty.openpty()
    with open(writer, "w", encoding="utf-8", newline="") as terminal:
        show_qr("short", terminal) if columns == 80 else show_qr(URL, terminal)
        if columns == 80:
            assert os.read(reader, 1 << 16).startswith(b"\x1b[38;5;16;48;5;231m")
            assert capsys.readouterr().err == ""
        else:
            assert "columns wide and this terminal 40" in capsys.readouterr().err
    os.close(reader)
