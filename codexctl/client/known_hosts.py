"""Which keys the known_hosts files hold for a host, with file and line, by ssh's rules.

asyncssh matches such files too, but trusts a key by address as well (ssh stopped in 8.5) and cannot
say which line spoke; so the lookup is here and asyncssh is given the keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import NamedTuple

from codexctl.client.ssh_config import SshTarget, host_matches
from codexctl.errors import AuthenticationFailed

MAX_FILE_BYTES = 16 << 20


class KnownKey(NamedTuple):
    """One line that is about the host."""

    marker: str  # "", "cert-authority" or "revoked"
    key: str  # as in a public key file: type and base64
    file: str
    line: int  # from 1

    @property
    def place(self) -> str:
        return f"{self.file} line {self.line}"


def known_keys(target: SshTarget) -> list[KnownKey]:
    """The lines for a target in all its files. A missing file holds nothing.

    A host on another port than 22 may be known by its bare name, as in ssh, when no line has the
    port. AuthenticationFailed where a file is there and cannot be read: keys that it revokes would
    be trusted.
    """
    files = [(path, _read(path)) for path in target.known_hosts_files]
    found = _search(files, target.known_as)
    if target.host_key_alias is None and not any(key.marker != "revoked" for key in found):
        bare = _search(files, target.hostname)
        found += [key for key in bare if key not in found]
    return found


def _search(files: list[tuple[str, str]], name: str) -> list[KnownKey]:
    return [key for path, text in files for key in match_lines(path, text, name)]


def match_lines(path: str, text: str, name: str) -> list[KnownKey]:
    """The lines of one file's text that are about `name` (lower or upper case)."""
    found = []
    name = name.lower()
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = ""
        if fields[0].startswith("@"):
            marker = fields.pop(0)[1:]
            if marker not in ("cert-authority", "revoked"):
                continue
        if len(fields) < 3 or not _is_about(fields[0], name):
            continue
        found.append(KnownKey(marker, f"{fields[1]} {fields[2]}", path, number))
    return found


def _is_about(patterns: str, name: str) -> bool:
    if not patterns.startswith("|"):
        return host_matches(tuple(patterns.lower().split(",")), name)
    try:
        _, magic, salt, digest = patterns.split("|")
        if magic != "1":
            return False
        wanted = binascii.a2b_base64(digest)
        given = hmac.new(binascii.a2b_base64(salt), name.encode(), hashlib.sha1).digest()
    except ValueError:
        return False
    return hmac.compare_digest(wanted, given)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise AuthenticationFailed(
            f"cannot read {path}: {error.strerror}", hint=f"check the owner and mode of {path}"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise AuthenticationFailed(
            f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB", hint=f"move {path} away"
        )
    return data.decode("utf-8", "replace")


def fingerprint(key: str) -> str:
    """`ED25519 SHA256:…` of a public key line, as ssh shows it."""
    kind, data, *_ = key.split()
    digest = hashlib.sha256(base64.b64decode(data)).digest()
    short = kind.removeprefix("ssh-").removeprefix("ecdsa-sha2-").upper()
    return f"{short} SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def refusal(target: SshTarget, known: list[KnownKey], offered: str | None) -> AuthenticationFailed:
    """Why a host key is not taken: it is revoked, unknown, or another than the known ones.

    `offered` is the key's public line; None where the host showed a certificate nobody vouches for.
    """
    shown = fingerprint(offered) if offered else "a host certificate"
    revoked = [key for key in known if key.marker == "revoked"]
    trusted = [key for key in known if not key.marker]
    if revoked and (offered is None or any(key.key == offered for key in revoked)):
        return AuthenticationFailed(
            f"the host key of {target.alias} ({shown}) is revoked in {revoked[0].place}",
            hint="do not connect before the owner of that machine has explained it",
        )
    if trusted:
        first = trusted[0]
        return AuthenticationFailed(
            f"THE HOST KEY OF {target.alias} HAS CHANGED: it shows {shown}, {first.place} has "
            f"{fingerprint(first.key)}; somebody may be listening in between",
            hint="if that machine was really made anew: "
            f"ssh-keygen -f '{first.file}' -R '{target.known_as}'",
        )
    return AuthenticationFailed(
        f"the host key of {target.alias} ({shown}) is not known",
        hint=f"connect once with ssh and compare the fingerprint: ssh {target.alias} true",
    )
