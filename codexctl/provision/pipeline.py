"""Carry out what the core decides: journal first, then the call, then the next decision.

Used in one thread and in the foreground. Killed at any point it leaves a journal from which another
process goes on (`resume`) or clears up (`destroy`); what that leaves in the cloud carries the id.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from codexctl.errors import AuthenticationFailed, CodexctlError, ConnectionFailed, ProtocolError
from codexctl.paths import Home
from codexctl.provision import core, install, keys, pairing, readiness
from codexctl.provision.cloudinit import Wanted, render_user_data
from codexctl.provision.core import Action, Done, Failed, Outcome, Over, State
from codexctl.provision.errors import ProviderError
from codexctl.provision.journal import Journal, Workspace
from codexctl.provision.keys import WorkspaceFiles, ensure_key, public_key_of_line
from codexctl.provision.model import Account, Machine, Order, Provider
from codexctl.provision.readiness import Teller
from codexctl.provision.remote import Link, Target
from codexctl.provision.ssh_config import Entry, SshConfig
from codexctl.secret import Secret

ADDRESS_TIMEOUT_S = 600.0
ADOPT_TIMEOUT_S = 10.0
ADDRESS_EVERY_S = (0.5, 1.0, 1.0, 2.0, 3.0)


class Pipeline:
    """Everything one run over one workspace needs."""

    def __init__(
        self,
        home: Home,
        journal: Journal,
        provider: Provider,
        account: Account,
        tell: Teller,
        *,
        passphrase: Secret | None = None,
        ready_timeout_s: float = readiness.READY_TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.home, self.journal, self.provider, self.account = home, journal, provider, account
        self.tell, self.passphrase = tell, passphrase
        self.ready_timeout_s = ready_timeout_s
        self._sleep = sleep
        self._link: Link | None = None

    def run(self, workspace: Workspace, *, goal: core.Goal) -> Workspace:
        """Bring it to its goal, or raise what stopped it; a second run at once is an error."""
        if goal == "up" and workspace.goal == "gone":
            raise CodexctlError(
                f"{workspace.name} is being destroyed",
                hint=f"codexctl workspace destroy {workspace.name}",
            )
        with workspace_lock(self.home, workspace):
            try:
                return self._run(self.journal.by_id(workspace.id), goal)
            finally:
                if self._link is not None:
                    self._link.__exit__(None, None, None)
                    self._link = None

    def _run(self, workspace: Workspace, goal: core.Goal) -> Workspace:
        state = core.resumed(workspace.stage, goal, workspace.undoing)
        self._save(workspace, state)
        error: CodexctlError | None = None
        while True:
            action = core.decide(state)
            if isinstance(action, Over):
                if not action.ok:
                    self.tell("undone", "ok", f"nothing of {workspace.name} is left")
                    raise error or CodexctlError(workspace.undoing)
                self.journal.set_error(workspace.id, "")
                return self.journal.by_id(workspace.id)
            if action.wait_s:
                self._sleep(action.wait_s)
            # The journal may have a machine, an address or an expiry by now.
            outcome, failure = self._perform(self.journal.by_id(workspace.id), action)
            if failure is not None:
                # What is being undone stays the reason; a failure of the undoing comes on top.
                error = failure
                self._failed(workspace, action, failure)
            after = core.apply(state, action, outcome)
            if isinstance(after, Over):
                raise self._named(error, workspace) if error else self._unconfirmed(workspace)
            if after != state:
                self._save(workspace, after)
            state = after

    def _save(self, workspace: Workspace, state: State) -> None:
        now = _now()
        self.journal.save(workspace.id, state, now=now)
        self.journal.note(workspace.id, f"{state.goal}: {state.stage}", now=now)

    def _failed(self, workspace: Workspace, action: Action, error: CodexctlError) -> None:
        self.journal.note(workspace.id, f"{action.do} failed: {error.message}", now=_now())
        self.journal.set_error(workspace.id, error.message)

    def _named(self, error: CodexctlError, workspace: Workspace) -> CodexctlError:
        """The error that ends the run, with what to do about what exists where it says nothing."""
        name = workspace.name
        back = f"codexctl workspace destroy {name}"
        up = self.journal.by_id(workspace.id).goal == "up"
        error.hint = error.hint or (
            f"codexctl provision --resume {name} goes on, {back} undoes it" if up else back
        )
        return error

    def _unconfirmed(self, workspace: Workspace) -> CodexctlError:
        left = self.account.resources(workspace.ref)
        names = ", ".join(f"{resource.kind} {resource.resource_id}" for resource in left)
        return ProviderError(
            f"{workspace.name} is not confirmed gone: the provider still lists {names}",
            hint=f"codexctl workspace destroy {workspace.name} tries again",
        )

    def _perform(
        self, workspace: Workspace, action: Action
    ) -> tuple[Outcome, CodexctlError | None]:
        try:
            return Done(found=self._steps[action.do](self, workspace)), None
        except ProviderError as error:
            after = getattr(error, "retry_after_s", None)
            return Failed(error.retry, error.message, after), error
        except ConnectionFailed as error:
            # The way to the machine broke: each step may be done again. A wrong key stays wrong.
            cured = not isinstance(error, (AuthenticationFailed, ProtocolError))
            return Failed("again" if cured else "never", error.message), error
        except CodexctlError as error:
            return Failed("never", error.message), error
        except Exception as error:
            # A plugin's defect: its text could hold anything, and the call may have had its effect.
            failure = CodexctlError(
                f"the provider {self.provider.name} failed at {action.do}: {type(error).__name__}",
                hint="this is a defect of that plugin; CODEXCTL_DEBUG=1 shows more",
            )
            failure.__cause__ = error
            return Failed("look" if action.do == "create" else "never", failure.message), failure

    # Each step answers whether something was found; only look and confirm ask.

    def _make_keys(self, workspace: Workspace) -> bool:
        files = WorkspaceFiles(self.home, workspace.id)
        files.make()
        ensure_key(files.key, files.alias, self.passphrase)
        if workspace.settings.agent:
            keys.add_to_agent(files.key)
        if self.provider.capabilities.host_key and not files.pinned():
            line = ensure_key(files.host_key, f"first host key of {files.alias}")
            files.pin([public_key_of_line(line)])
        # What the provider or ssh would refuse is found before anything is ordered.
        self._order(workspace)
        SshConfig(self.home).rehearse(
            entry_of(workspace, Machine(workspace.ref, "running", "192.0.2.1"), files)
        )
        return True

    def _journal_only(self, workspace: Workspace) -> bool:
        return True

    def _order(self, workspace: Workspace) -> Order:
        files = WorkspaceFiles(self.home, workspace.id)
        public = ensure_key(files.key, files.alias, self.passphrase)
        able = self.provider.capabilities
        user_data: Secret | None = None
        if able.user_data_bytes:
            with open(files.host_key, encoding="ascii") as file:
                private = Secret(file.read())
            settings = workspace.settings
            user_data = render_user_data(
                self.home,
                Wanted(
                    name=workspace.name,
                    user=workspace.user,
                    # It becomes root until everything is installed; see `install.finish`.
                    sudo=True,
                    packages=settings.packages,
                    setup=settings.setup,
                    bare=settings.bare,
                    public_key=public,
                    host_key_private=private,
                    host_key_public=ensure_key(files.host_key, ""),
                    close_metadata=able.metadata,
                    ends_itself=able.ends_itself,
                    expires_at=workspace.expires_at,
                    template=settings.template,
                ),
                limit_bytes=able.user_data_bytes,
            )
        return Order(
            ref=workspace.ref,
            name=workspace.name,
            plan=workspace.plan,
            tags=self.journal.tags(workspace),
            public_key=public,
            user_data=user_data,
        )

    def _create(self, workspace: Workspace) -> bool:
        self.tell("created", "waiting")
        self._keep(workspace, self.account.create(self._order(workspace)))
        return True

    def _look(self, workspace: Workspace) -> bool:
        machine = self.account.describe(workspace.ref)
        if machine is None:
            return False
        self._keep(workspace, machine)
        return True

    def _keep(self, workspace: Workspace, machine: Machine) -> None:
        self.journal.set_machine(workspace.id, machine)
        power = "stopped" if machine.state == "stopped" else "running"
        self.journal.set_power(workspace.id, power, now=_now())

    def _await_address(self, workspace: Workspace) -> bool:
        assert workspace.machine is not None
        self.tell("created", "ok", workspace.machine.ref.machine_id or "")
        machine = await_running(self.account, workspace, workspace.machine, self.tell, self._sleep)
        self._keep(workspace, machine)
        return True

    def _write_config(self, workspace: Workspace) -> bool:
        assert workspace.machine is not None
        if workspace.machine.host_keys:
            WorkspaceFiles(self.home, workspace.id).pin(list(workspace.machine.host_keys))
        write_ssh_config(self.home, self.journal)
        return True

    def _await_ready(self, workspace: Workspace) -> bool:
        link, name = self.link(workspace), workspace.name
        creates = self.provider.capabilities.creates
        # A machine that was there before does not become ready by waiting.
        timeout_s = self.ready_timeout_s if creates else ADOPT_TIMEOUT_S
        end = time.monotonic() + timeout_s
        readiness.await_login(link, name, self.tell, timeout_s=timeout_s)
        if creates:
            left = end - time.monotonic()
            readiness.await_cloud_init(link, name, self.tell, timeout_s=left)
        if not workspace.settings.bare:
            if workspace.plan.extra.get("codex") == "missing":
                install.install_codex(link, workspace, self.tell)
            readiness.check_codex(link, name, self.tell)
        return True

    def _rotate(self, workspace: Workspace) -> bool:
        if self.provider.capabilities.host_key:
            install.rotate_host_key(self.link(workspace), WorkspaceFiles(self.home, workspace.id))
            self._drop_link()
        return True

    def _install(self, workspace: Workspace) -> bool:
        link = self.link(workspace)
        if not workspace.settings.bare:
            install.install_codexctl(link, workspace, self.tell)
        return True

    def _pair(self, workspace: Workspace) -> bool:
        adopted = not self.provider.capabilities.creates
        pairing.pair(self.home, self.link(workspace), workspace, self.tell, adopted=adopted)
        if not adopted and not workspace.settings.sudo:
            install.drop_sudo(self.link(workspace))
        return True

    def _finish(self, workspace: Workspace) -> bool:
        self.tell("ready", "ok", f"ssh {workspace.name}")
        return True

    def _destroy(self, workspace: Workspace) -> bool:
        self.tell("destroy", "waiting")
        self.account.destroy(workspace.ref)
        return True

    def _confirm(self, workspace: Workspace) -> bool:
        left = self.account.resources(workspace.ref)
        if not left:
            self.journal.set_power(workspace.id, "none", now=_now())
            self.tell("destroy", "ok", "the provider lists nothing of it any more")
        return bool(left)

    def _forget(self, workspace: Workspace) -> bool:
        files = WorkspaceFiles(self.home, workspace.id)
        write_ssh_config(self.home, self.journal, without=workspace.id)
        keys.remove_from_agent(files.key)
        if problem := pairing.unpair(self.home, workspace):
            self.tell("paired", "failed", problem)
        files.remove()
        return True

    def link(self, workspace: Workspace) -> Link:
        """The pinned connection to the machine, opened when first used."""
        if self._link is None:
            self._link = Link(target_of(self.home, workspace, self.passphrase))
        return self._link

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.__exit__(None, None, None)
            self._link = None

    _steps: dict[core.Do, Callable[[Pipeline, Workspace], bool]] = {  # noqa: RUF012 - a constant
        "make-keys": _make_keys,
        "order": _journal_only,
        "create": _create,
        "look": _look,
        "await-address": _await_address,
        "write-config": _write_config,
        "await-ready": _await_ready,
        "rotate": _rotate,
        "install": _install,
        "pair": _pair,
        "finish": _finish,
        "destroy": _destroy,
        "confirm": _confirm,
        "forget": _forget,
    }


def await_running(
    account: Account,
    workspace: Workspace,
    machine: Machine | None,
    tell: Teller,
    sleep: Callable[[float], None] = time.sleep,
) -> Machine:
    """The machine once it runs and has an address, asking the provider no oftener than needed."""
    end = time.monotonic() + ADDRESS_TIMEOUT_S
    asked = 0
    while True:
        if machine is None:
            raise ProviderError(
                f"the machine of {workspace.name} has vanished at the provider",
                hint=f"codexctl workspace destroy {workspace.name} clears what is left",
            )
        if machine.state in ("failed", "ending"):
            detail = machine.detail or f"it is {machine.state}"
            raise ProviderError(
                f"the machine of {workspace.name} did not start: {detail}",
                hint=f"codexctl workspace destroy {workspace.name}, then try another size",
            )
        if machine.state == "running" and machine.address:
            tell("address", "ok", machine.address)
            return machine
        if time.monotonic() > end:
            raise ProviderError(
                f"{workspace.name} has no address after {ADDRESS_TIMEOUT_S:.0f} s",
                hint=f"codexctl provision --resume {workspace.name} waits on",
            )
        if asked == 0:
            tell("address", "waiting")
        sleep(ADDRESS_EVERY_S[min(asked, len(ADDRESS_EVERY_S) - 1)])
        asked += 1
        machine = account.describe(workspace.ref)


def target_of(home: Home, workspace: Workspace, passphrase: Secret | None = None) -> Target:
    """Where ssh finds the workspace; CodexctlError while it has no address."""
    machine = workspace.machine
    files = WorkspaceFiles(home, workspace.id)
    if machine is None or not machine.address:
        raise CodexctlError(
            f"{workspace.name} has no address yet",
            hint=f"codexctl provision --resume {workspace.name}",
        )
    return Target(
        address=machine.address,
        port=machine.port,
        user=workspace.user,
        key=files.key,
        host_keys=tuple(files.pinned()),
        passphrase=passphrase,
        proxy_jump=machine.proxy_jump or "",
    )


def write_ssh_config(home: Home, journal: Journal, *, without: str = "") -> None:
    """Render codexctl's ssh config from the journal: every workspace that has an address."""
    live = [workspace for workspace in journal.live() if workspace.id != without]
    SshConfig(home).write(entries_of(home, live))


def entries_of(home: Home, workspaces: Iterable[Workspace]) -> list[Entry]:
    """What the ssh template sees; a workspace without an address, or without a key here, is not."""
    entries = []
    for workspace in workspaces:
        machine = workspace.machine
        if machine is None or not machine.address:
            continue
        files = WorkspaceFiles(home, workspace.id)
        if os.path.exists(files.key):
            entries.append(entry_of(workspace, machine, files))
    return entries


def entry_of(workspace: Workspace, machine: Machine, files: WorkspaceFiles) -> Entry:
    return Entry(
        name=workspace.name,
        id=workspace.id,
        address=machine.address or "",
        port=machine.port,
        user=workspace.user,
        key=files.key,
        known_hosts=files.known_hosts,
        alias=files.alias,
        proxy_jump=machine.proxy_jump or "",
        provider=workspace.provider,
    )


@contextmanager
def workspace_lock(home: Home, workspace: Workspace) -> Iterator[None]:
    """One codexctl at a time works on a workspace; CodexctlError for the second."""
    folder = home.join(keys.FOLDER)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    # Beside the workspace's folder, which goes away while the lock is held.
    path = os.path.join(folder, f"{workspace.id}.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CodexctlError(
                f"another codexctl is working on {workspace.name}", hint="wait for it to end"
            ) from error
        yield
    finally:
        if not os.path.exists(os.path.join(folder, workspace.id)):
            _unlink(path)
        os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _now() -> int:
    return int(time.time())
