"""Which untracked files stay behind because they are, or hold, a secret. Committed ones move."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase

HEAD_BYTES = 256
MAX_SNIFFED_BYTES = 64 * 1024  # private keys are smaller
NAMES = (
    "auth.json", ".netrc", "_netrc", ".pgpass", ".pypirc", ".git-credentials", ".htpasswd",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "id_ecdsa_sk", "id_ed25519_sk",
    "*.kdbx", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.ppk",
)  # fmt: skip
FOLDERS = (".ssh", ".aws", ".gnupg", ".codex", ".codexctl")
_MARKS = (b"PRIVATE KEY-----", b"PRIVATE KEY BLOCK-----", b"AGE-SECRET-KEY-1", b"PuTTY-User-Key")


def why_secret(top: str, path: bytes, size: int) -> str | None:
    """Why the regular file at `path` (below `top`) is not carried; None where it may be."""
    *folders, name = os.fsdecode(path).lower().split("/")
    if any(fnmatchcase(name, pattern) for pattern in NAMES):
        return "its name is that of a credential"
    if any(folder in FOLDERS for folder in folders):
        return "it lies in a folder of credentials"
    if 0 < size <= MAX_SNIFFED_BYTES:
        try:
            fd = os.open(os.path.join(os.fsencode(top), path), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return None  # git will say that it cannot be read
        try:
            head = os.read(fd, HEAD_BYTES)
        finally:
            os.close(fd)
        if any(mark in head for mark in _MARKS):
            return "it holds a private key"
    return None
