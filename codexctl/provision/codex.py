"""The script that installs the official codex on a machine: as npm has it, by its checksum.

npm is not needed there, only python3. The package of the machine's own architecture is taken from
the registry, compared with the SHA-512 that the registry's record of it holds, and unpacked; a
broken or other download installs nothing. CODEXCTL_NPM_REGISTRY names a mirror that machines reach.
"""

from __future__ import annotations

import os
from shlex import quote

from codexctl.errors import UsageError

ENV_REGISTRY = "CODEXCTL_NPM_REGISTRY"
REGISTRY = "https://registry.npmjs.org"

_FETCH = """\
import base64, hashlib, json, os, platform, shutil, sys, tarfile, tempfile, time
from urllib.error import HTTPError
from urllib.request import urlopen
registry, folder = sys.argv[1:]
cpu = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine())
if cpu is None:
    sys.exit(f"there is no codex for {platform.machine()}")
def fetch(url, out):
    for wait in (1, 3, None):
        try:
            with urlopen(url, timeout=60) as answer:
                out.seek(0); out.truncate()
                return shutil.copyfileobj(answer, out, 1 << 20)
        except OSError as error:
            if wait is None or isinstance(error, HTTPError) and error.code < 500:
                sys.exit(f"cannot fetch {url}: {error}")
            time.sleep(wait)  # a registry that fails is asked three times
def record(name):
    with tempfile.TemporaryFile() as out:
        fetch(f"{registry}/@openai/codex/{name}", out)
        out.seek(0)
        return json.load(out)
version = record("latest")["version"]
dist = record(f"{version}-linux-{cpu}")["dist"]
kind, _, wanted = dist["integrity"].partition("-")
if kind != "sha512" or not dist["tarball"].startswith(("https://", registry + "/")):
    sys.exit("the registry's record of codex is not as expected")
new = folder + ".new"
shutil.rmtree(new, ignore_errors=True)
with tempfile.TemporaryFile() as out:
    fetch(dist["tarball"], out)
    out.seek(0)
    digest = hashlib.sha512()
    while block := out.read(1 << 20):
        digest.update(block)
    if base64.b64encode(digest.digest()).decode() != wanted:
        sys.exit(f"the checksum of codex {version} is wrong; nothing was installed")
    out.seek(0)
    with tarfile.open(fileobj=out, mode="r:gz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if not member.isfile() or parts[:2] != ["package", "vendor"] or ".." in parts:
                continue
            path = os.path.join(new, *parts[3:])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                shutil.copyfileobj(archive.extractfile(member), file)
            os.chmod(path, 0o755 if member.mode & 0o100 else 0o644)
shutil.rmtree(folder, ignore_errors=True)
os.rename(new, folder)
"""


def install_script(folder: str = "/usr/local/lib/codex", binaries: str = "/usr/local/bin") -> str:
    """A `sh` script; `folder` and `binaries` may hold `$HOME`. It ends with codex's own version."""
    registry = os.environ.get(ENV_REGISTRY, "").rstrip("/") or REGISTRY
    if not registry.startswith(("https://", "http://127.0.0.1")):
        raise UsageError(f"{ENV_REGISTRY} is not an https address: {registry}")
    return f"""\
#!/bin/sh
# The official codex, from npm's registry by its checksum, unless the machine has it.
set -eu
if command -v codex >/dev/null 2>&1 || [ -x "{binaries}/codex" ]; then exit 0; fi
python=$(command -v python3) || {{ echo "there is no python3" >&2; exit 1; }}
umask 022
mkdir -p "{os.path.dirname(folder)}" "{binaries}"
"$python" - {quote(registry)} "{folder}" <<'END'
{_FETCH}END
ln -sfn "{folder}/bin/codex" "{binaries}/codex"
"{binaries}/codex" --version
"""
