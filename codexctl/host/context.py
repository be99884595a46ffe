"""What the host's handlers share: policy, sandbox, processes, audit and the login environment."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from codexctl import __version__
from codexctl.errors import CodexctlError, Refused, StateError
from codexctl.host.agents_md import find_agents_md
from codexctl.host.audit import UNRECORDED, AuditLog
from codexctl.host.environment import LoginEnvironment, discover
from codexctl.host.policy import SYSTEM_POLICY, Policy, load_policy
from codexctl.host.processes import ProcessTable
from codexctl.host.sandbox import SandboxRequest, Surroundings, plan_sandbox
from codexctl.host.sandbox_probe import RealFiles, Sandbox
from codexctl.paths import Home
from codexctl.session.channel import Peer

if TYPE_CHECKING:
    from codexctl.agent.agent import Agent

CODEX_VERSION_S = 5.0

_log = logging.getLogger(__name__)


class HostContext:
    """One host, for all its channels. Made before the event loop runs, used within it."""

    def __init__(
        self, home: Home, workspace: str, name: str, policy: Policy, audit: AuditLog, person: str
    ) -> None:
        self.home = home
        self.workspace = workspace
        self.name = name
        self.policy = policy
        self.audit = audit
        self.processes = ProcessTable()
        # Copies that run, by device and by what is copied (codexctl.host.files).
        self.copies: dict[tuple[str, ...], tuple[asyncio.subprocess.Process, asyncio.Event]] = {}
        self._person = person
        self._lock = asyncio.Lock()
        self._login: LoginEnvironment | None = None
        self._sandbox: Sandbox | None = None
        self._copy_sandbox: Sandbox | None = None
        self._codex: dict[str, str] | None = None
        self._agent: Agent | None = None

    @property
    def agent(self) -> Agent:
        """The official app-server of this host and what is kept of it."""
        if self._agent is None:
            from codexctl.agent.agent import Agent

            caps = tuple(
                self.policy.choice(f"threads.{name}")[0] for name in ("sandbox", "approval")
            )
            self._agent = Agent(self.home, self.name, self.login, caps)
        return self._agent

    @classmethod
    def create(
        cls,
        home: Home,
        workspace: str,
        name: str,
        *,
        system_policy: str = SYSTEM_POLICY,
        person: str | None = None,
    ) -> HostContext:
        """Read the policy and check the workspace. PolicyError, Refused or StateError.

        `person` is the home folder of whoever the host works for, their own by default.
        """
        person = os.path.expanduser("~") if person is None else person
        policy = load_policy(home.policy, system_path=system_policy, home=person)
        real = os.path.realpath(workspace)
        if not os.path.isdir(real):
            raise StateError(
                f"the workspace {workspace} is not a folder",
                hint="name one that exists with --workspace",
            )
        policy.check_folder(real, real)
        if policy.sandbox_required:
            # Said now, not to the first device that runs something.
            around = Surroundings(person, home.path, {}, tuple(path for path, _ in policy.hidden))
            plan_sandbox(around, SandboxRequest(real, real), RealFiles())
        return cls(home, real, name, policy, AuditLog(home, sync_each=policy.sync_each), person)

    async def login(self) -> LoginEnvironment:
        """What a login gives the person; asked once, which can take some seconds."""
        if self._login is None:
            async with self._lock:
                if self._login is None:
                    self._login = await discover(home=self._person)
        return self._login

    async def sandbox(self) -> Sandbox:
        """The sandbox, ready to start commands. Refused where it does not work here."""
        login = await self.login()
        if self._sandbox is None:
            self._sandbox = Sandbox(self._surroundings(login), self.workspace)
        await self._sandbox.ready()
        return self._sandbox

    async def copy_sandbox(self, readable: tuple[str, ...]) -> Sandbox:
        """As `sandbox`, and it shows these paths too: those of the program that copies files."""
        login = await self.login()
        if self._copy_sandbox is None:
            self._copy_sandbox = Sandbox(self._surroundings(login, readable), self.workspace)
        await self._copy_sandbox.ready()
        return self._copy_sandbox

    def _surroundings(self, login: LoginEnvironment, more: tuple[str, ...] = ()) -> Surroundings:
        return Surroundings(
            home=self._person,
            state=self.home.path,
            variables=login.variables,
            hidden=tuple(path for path, _ in self.policy.hidden),
            readable=(*self.policy.readable, *more),
        )

    async def warm(self) -> None:
        """Ask the shell and try the sandbox before the first command waits for both."""
        try:
            await self.sandbox()
        except Refused as error:
            _log.warning("%s; %s", error, error.hint)

    async def aclose(self) -> None:
        """End all processes and put the audit log on the disk."""
        await self.processes.aclose()
        await asyncio.to_thread(self.audit.close)

    def record(self, kind: str, peer: Peer, what: object, outcome: str, **more: Any) -> None:
        """An audit record by a device. Refused where it cannot be kept."""
        try:
            self.audit.append(
                kind, who=peer.name, device=peer.device_id, what=what, outcome=outcome, **more
            )
        except StateError as error:
            raise Refused(f"{UNRECORDED}: {error}", hint=error.hint) from error

    def note(self, kind: str, peer: Peer, what: object, outcome: str, **more: Any) -> None:
        """An audit record of what has happened already: where it cannot be kept the log says so."""
        try:
            self.record(kind, peer, what, outcome, **more)
        except Refused as error:
            _log.error("%s", error)

    async def status(self) -> dict[str, Any]:
        """The answer of the control method `status`."""
        try:
            await self.sandbox()
            sandbox: dict[str, Any] = {"works": True}
        except CodexctlError as error:
            sandbox = {"works": False, "message": error.message, "hint": error.hint}
        login = await self.login()
        if self._codex is None:
            self._codex = await asyncio.to_thread(_find_codex, login)
        codex_home = login.variables.get("CODEX_HOME") or os.path.join(self._person, ".codex")
        documents = await asyncio.to_thread(find_agents_md, self.workspace, codex_home)
        return {
            "name": self.name,
            "version": __version__,
            "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
            "workspace": self.workspace,
            "sandbox": {**sandbox, "required": self.policy.sandbox_required},
            "network": self.policy.network,
            "shell": login.shell,
            "codex": self._codex,
            "agents_md": [document._asdict() for document in documents],
        }


def _find_codex(login: LoginEnvironment) -> dict[str, str]:
    """Path and version of the codex on the login PATH; empty where there is none."""
    path = shutil.which("codex", path=login.path)
    if path is None:
        return {}
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CODEX_VERSION_S,
            check=False,
            env=login.variables,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {"path": path, "version": ""}
    words = done.stdout.decode(errors="replace").split()
    return {"path": path, "version": words[-1] if words and done.returncode == 0 else ""}
