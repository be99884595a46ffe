"""Render the user data that makes a bare machine a workspace, and check it before it is sent.

cloud-init ignores user data that does not parse, and calls a script done whose middle failed; so
the text is parsed here (and by `cloud-init schema` where installed), must still hold the keys that
the first connection relies on, and runs its steps one by one under a wrapper that stops.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from codexctl.errors import CodexctlError, UsageError
from codexctl.paths import Home
from codexctl.provision.codex import install_script
from codexctl.provision.errors import UserDataTooLarge
from codexctl.provision.templates import render
from codexctl.secret import Secret

SCHEMA_TIMEOUT_S = 20.0
MAX_SETUP_BYTES = 1 << 20
LOGIN_SHELL = "/bin/bash"
BASE_PACKAGES = ("bubblewrap", "ca-certificates", "curl", "git", "python3", "python3-venv")
"""What codexctl's host and codex need beyond a cloud image."""
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~=-]*\Z")


class Step(NamedTuple):
    """One script run by root at the first boot; its name says its place."""

    name: str
    base64: str


class Wanted(NamedTuple):
    """What the template is rendered with."""

    name: str
    user: str
    sudo: bool
    packages: tuple[str, ...]
    setup: tuple[str, ...]
    bare: bool
    public_key: str
    host_key_private: Secret
    host_key_public: str
    close_metadata: bool
    ends_itself: bool
    """The machine shuts down at its expiry, which may be moved while it runs."""
    expires_at: int | None
    template: str = ""


def check_settings(
    user: str, packages: Sequence[str], setup: Sequence[str], *, creates: bool
) -> None:
    """UsageError for a user, package or script that cannot work, before anything is made."""
    if not _USER.match(user):
        raise UsageError(f"{user!r} cannot be a user's name", hint="lower-case letters and digits")
    if user == "root" and creates:
        raise UsageError(
            "a workspace's user is not root", hint="leave --user out; --sudo lets it become root"
        )
    for package in packages:
        if not _PACKAGE.match(package):
            raise UsageError(f"{package!r} cannot be a package's name")
    for path in setup:
        read_setup(path)


def read_setup(path: str) -> bytes:
    """A setup script; UsageError where it cannot be read, is empty or too long."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SETUP_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the setup script {path}: {error.strerror}") from error
    if not data.strip() or len(data) > MAX_SETUP_BYTES:
        raise UsageError(f"the setup script {path} is empty or larger than {MAX_SETUP_BYTES} bytes")
    # Without a first line that names one, the shell runs it.
    return data if data.startswith(b"#!") else b"#!/bin/sh -e\n" + data


def steps_of(setup: Sequence[str], *, bare: bool) -> list[Step]:
    """The steps in order: codex unless bare, then the person's scripts."""
    steps = [] if bare else [_step("10-codex", install_script().encode())]
    for number, path in enumerate(setup):
        label = re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename(path)).strip("-") or "setup"
        steps.append(_step(f"{20 + number:02d}-{label}", read_setup(path)))
    return steps


def _step(name: str, script: bytes) -> Step:
    return Step(name, base64.b64encode(script).decode())


def render_user_data(home: Home, wanted: Wanted, *, limit_bytes: int) -> Secret:
    """The user data, checked; CodexctlError says what is wrong with it, never what is in it."""
    packages = wanted.packages if wanted.bare else (*BASE_PACKAGES, *wanted.packages)
    text = render(
        home,
        "cloud-init.yaml.j2",
        path=wanted.template,
        name=wanted.name,
        user=wanted.user,
        sudo=wanted.sudo,
        shell=LOGIN_SHELL,
        public_key=wanted.public_key,
        host_key_private=wanted.host_key_private.reveal(),
        host_key_public=wanted.host_key_public,
        packages=list(dict.fromkeys(packages)),
        steps=steps_of(wanted.setup, bare=wanted.bare),
        close_metadata=wanted.close_metadata,
        ends_itself=wanted.ends_itself,
        expires_at=wanted.expires_at,
    )
    check_user_data(text, wanted)
    size = len(text.encode())
    if size > limit_bytes:
        raise UserDataTooLarge(
            f"the user data is {size} bytes, this provider takes {limit_bytes}",
            hint="make the --setup scripts smaller: let them fetch what they need",
        )
    return Secret(text)


def check_user_data(text: str, wanted: Wanted) -> None:
    """Parse it as cloud-init does and look for what the first connection needs."""
    import yaml

    hint = "mend your own cloud-init template, or leave it out"
    if not text.startswith("#cloud-config\n"):
        raise CodexctlError("the user data does not begin with #cloud-config", hint=hint)
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        # The parser's own message quotes the text, which holds a private key.
        raise CodexctlError(f"the user data is not YAML{line}", hint=hint) from None
    if not isinstance(value, dict):
        raise CodexctlError("the user data is not a mapping", hint=hint)
    keys = value.get("ssh_keys")
    private = keys.get("ed25519_private") if isinstance(keys, dict) else None
    if private != wanted.host_key_private.reveal() or not value.get("ssh_deletekeys"):
        raise CodexctlError("the user data lost the host key", hint=hint)
    users = value.get("users")
    named = [user for user in users or [] if isinstance(user, dict)]
    mine = [user for user in named if user.get("name") == wanted.user]
    if not mine or wanted.public_key not in mine[0].get("ssh_authorized_keys", []):
        raise CodexctlError("the user data lost the user's key", hint=hint)
    _check_schema(text)


def _check_schema(text: str) -> None:
    program = shutil.which("cloud-init")
    if program is None:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        try:
            done = subprocess.run(
                [program, "schema", "--config-file", file.name],
                check=False,
                capture_output=True,
                timeout=SCHEMA_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired):
            return
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace")
        reasons = [
            line.strip() for line in said.splitlines() if re.match(r"\s*[a-z_.0-9]+: ", line)
        ]
        raise CodexctlError(
            f"cloud-init refuses the user data: {reasons[0][:200] if reasons else 'no reason'}",
            hint="mend your own cloud-init template, or leave it out",
        )
