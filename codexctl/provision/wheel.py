"""This very codexctl as a wheel, made from its installed files, published or not.

A workspace runs the same version as the device that made it. A wheel is a zip of the packages and
of the metadata that the installer left (PEP 427), so no build tool and no network take part.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import distribution

from codexctl.errors import CodexctlError

PACKAGES = ("codexctl", "codexctl_plugins", "codexctl_templates")
_EPOCH = (1980, 1, 1, 0, 0, 0)
# A development tree keeps METADATA under its older name.
_METADATA = {
    "METADATA": "METADATA",
    "PKG-INFO": "METADATA",
    "entry_points.txt": "entry_points.txt",
}


def own_wheel() -> tuple[str, bytes]:
    """(file name, content). The same installation gives the same bytes."""
    installed = distribution("codexctl")
    name = f"codexctl-{installed.version}"
    entries = dict(_package_files())
    info = f"{name}.dist-info"
    for file, name_inside in _METADATA.items():
        text = installed.read_text(file)
        if text is not None:
            entries[f"{info}/{name_inside}"] = text.encode()
    if f"{info}/METADATA" not in entries:
        raise CodexctlError("this codexctl has no metadata to build a wheel from")
    entries[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: codexctl\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(
        f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in sorted(entries.items())
    )
    entries[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in sorted(entries.items()):
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return f"{name}-py3-none-any.whl", out.getvalue()


def _digest(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _package_files() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        root = os.path.dirname(str(import_module(package).__file__))
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for file in sorted(files):
                if file.endswith((".pyc", ".pyo")):
                    continue
                path = os.path.join(folder, file)
                inside = os.path.relpath(path, root).replace(os.sep, "/")
                with open(path, "rb") as source:
                    yield f"{package}/{inside}", source.read()
