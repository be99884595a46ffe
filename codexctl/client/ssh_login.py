"""Who we are to an ssh server, one key at a time, and whether we take the server for who it says.

The order is ssh's: keys of the agent that the config names, other keys of the agent (unless
IdentitiesOnly), then key files. A passphrase is asked for on the terminal, and only when the server
has said that it accepts that key. Passwords come last.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncssh
from asyncssh.agent import SSHAgentClient

from codexctl.client.known_hosts import KnownKey, refusal
from codexctl.client.prompt import read_line
from codexctl.client.ssh_config import SshTarget
from codexctl.errors import AuthenticationFailed, Interrupted

MAX_IDENTITIES = 32
MAX_PASSPHRASE_TRIES = 3


class Login(asyncssh.SSHClient):
    """Answers asyncssh's questions for one connection. `close` lets go of the agent."""

    def __init__(self, target: SshTarget, known: Sequence[KnownKey]) -> None:
        self._target = target
        self._known = list(known)
        self._agent: SSHAgentClient | None = None
        self._keys: AsyncIterator[asyncssh.SSHKeyPair] | None = None
        self._prompts = 0 if target.batch_mode or not _has_terminal() else target.password_prompts
        # Why the host's key was not taken.
        self.refused: AuthenticationFailed | None = None
        # What could not be offered, each as a sentence.
        self.skipped: list[str] = []

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Called for a key that known_hosts does not trust: no."""
        del host, addr, port
        line = key.export_public_key("openssh").decode().split(" ")
        offered = " ".join(line[:2]).strip()
        self.refused = refusal(self._target, self._known, offered)
        return False

    async def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | None:
        if self._keys is None:
            self._keys = self._candidates()
        return await anext(self._keys, None)

    def password_auth_requested(self) -> str | None:
        if self._prompts <= 0:
            return None
        self._prompts -= 1
        return ask_hidden(f"{self._target.user}@{self._target.alias}'s password: ")

    def kbdint_auth_requested(self) -> str | None:
        if self._prompts <= 0:
            return None
        self._prompts -= 1
        return ""

    def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Sequence[tuple[str, bool]]
    ) -> list[str] | None:
        del name, instructions, lang
        # Echoed answers are hidden too: nothing is lost by it.
        return [ask_hidden(f"({self._target.alias}) {text}") for text, _ in prompts]

    async def _candidates(self) -> AsyncIterator[asyncssh.SSHKeyPair]:
        files = self._target.identity_files[:MAX_IDENTITIES]
        offered: set[bytes] = set()
        wanted = [data for path in files if (data := _public_data(path)) is not None]
        held = await self._agent_keys()
        order = {data: place for place, data in enumerate(wanted)}
        held.sort(key=lambda pair: order.get(pair.key_public_data, len(order)))
        for pair in held:
            if pair.key_public_data in order or not self._target.identities_only:
                offered.add(pair.public_data)
                yield pair
        for path in files:
            for pair in self._load(path):
                if pair.public_data not in offered:
                    offered.add(pair.public_data)
                    yield pair

    async def _agent_keys(self) -> list[asyncssh.SSHKeyPair]:
        if self._target.identity_agent is None:
            return []
        try:
            self._agent = await asyncssh.connect_agent(self._target.identity_agent)
            return list(await self._agent.get_keys())
        except (OSError, ValueError, asyncssh.Error) as error:
            self.skipped.append(f"the ssh agent cannot be asked ({error})")
            return []

    def _load(self, path: str) -> Sequence[asyncssh.SSHKeyPair]:
        """The key pairs of a file, also with its certificate; locked ones are opened late."""
        passphrase: Any = None
        if not self._target.batch_mode and _has_terminal():
            passphrase = self._passphrase
        try:
            return asyncssh.load_keypairs(
                path,
                passphrase,
                list(self._target.certificate_files),
                loop=asyncio.get_running_loop(),
            )
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            if _is_locked(path):
                self.skipped.append(f"{path} has a passphrase: run ssh-add {path}")
            elif _public_data(path) is None:
                # A public key alone stands for one in the agent; anything else is worth a word.
                self.skipped.append(f"{path} cannot be used ({error})")
            return []

    async def _passphrase(self, path: str) -> str:
        """The passphrase that opens a key file; AuthenticationFailed when nobody knows it."""
        for _ in range(MAX_PASSPHRASE_TRIES):
            passphrase = ask_hidden(f"Passphrase for {path}: ")
            try:
                asyncssh.read_private_key(path, passphrase)
            except asyncssh.KeyEncryptionError:
                continue
            return passphrase
        raise AuthenticationFailed(f"{path} was not unlocked", hint=f"try: ssh-add {path}")


def _is_locked(path: str) -> bool:
    try:
        asyncssh.read_private_key(path)
    except ValueError as error:
        # asyncssh has no class for it: one that is not encrypted fails in another way.
        return str(error).startswith("Passphrase")
    except OSError:
        return False
    return False


def _public_data(path: str) -> bytes | None:
    """The public half of an identity file, from FILE.pub or itself; None where neither says."""
    for candidate in (f"{path}.pub", path):
        try:
            return asyncssh.read_public_key(candidate).public_data
        except (OSError, ValueError):
            continue
    return None


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def ask_hidden(prompt: str) -> str:
    """Ask on the terminal without echo; Interrupted on Ctrl-C."""
    # The event loop's handler would swallow Ctrl-C while the line is typed.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return read_line(prompt, hidden=True)
    except (KeyboardInterrupt, EOFError):
        raise Interrupted("interrupted before an answer, nothing was done") from None
    finally:
        signal.signal(signal.SIGINT, previous)
