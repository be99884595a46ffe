"""As much of npm's registry as installing the official codex asks for, with a codex of a few lines.

`spoil` breaks the download: other bytes of the same length, or the end of it missing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import platform
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = "9.8.7"
CPU = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "none")
# It finds its resources beside itself, as the real one does.
CODEX = f"""#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
echo "codex-cli {VERSION} $(cat "$here/../codex-resources/note")"
"""


def tarball() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        root = "package/vendor/some-target"
        for name, text, mode in (
            (f"{root}/bin/codex", CODEX, 0o755),
            (f"{root}/codex-resources/note", "and its resources", 0o644),
            ("package/README.md", "not unpacked", 0o644),
            (f"{root}/../../../../escaped", "nor this", 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), mode
            archive.addfile(entry, io.BytesIO(text.encode()))
        link = tarfile.TarInfo(f"{root}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


@contextlib.contextmanager
def npm_registry(spoil: str = "") -> Iterator[str]:
    """Its address, while the block runs."""
    package = tarball()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()
    sent = {"": package, "changed": package[:-9] + b"x" + package[-8:], "cut": package[:-100]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = f"http://127.0.0.1:{self.server.server_address[1]}"
            file = f"/@openai/codex/-/codex-{VERSION}-linux-{CPU}.tgz"
            record = {"dist": {"tarball": url + file, "integrity": integrity}}
            answers = {
                "/@openai/codex/latest": json.dumps({"version": VERSION}).encode(),
                f"/@openai/codex/{VERSION}-linux-{CPU}": json.dumps(record).encode(),
                file: sent.get(spoil, package),
            }
            body = answers.get(self.path) if spoil != "gone" else None
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
