"""What the commands share: this home's journal, its plugins, and the accounts that are open."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from codexctl.errors import CodexctlError
from codexctl.paths import Home
from codexctl.provision import core, reap
from codexctl.provision.errors import IncompleteList, ProviderError
from codexctl.provision.journal import Journal, Workspace
from codexctl.provision.keys import WorkspaceFiles
from codexctl.provision.model import Account, Machine, Plan, Provider
from codexctl.provision.pipeline import Pipeline, workspace_lock, write_ssh_config
from codexctl.provision.plugins import Plugins, load_plugins
from codexctl.provision.readiness import Teller
from codexctl.provision.secrets import HomeSecrets
from codexctl.secret import Secret

T = TypeVar("T")

READ_TRIES = 4
READ_WAIT_S = 0.25
MAX_READ_WAIT_S = 20.0


class Service:
    """Opened for one command. Accounts are opened when first used and closed with it."""

    def __init__(self, home: Home) -> None:
        self.home = home.ensure()
        self.journal = Journal(home)
        self.secrets = HomeSecrets(home)
        self._plugins: Plugins | None = None
        self._accounts: dict[tuple[str, tuple[tuple[str, str], ...]], Account] = {}
        self._account_ids: dict[Account, str] = {}

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        for account in self._accounts.values():
            account.close()
        self.journal.close()

    @property
    def plugins(self) -> Plugins:
        if self._plugins is None:
            self._plugins = load_plugins()
        return self._plugins

    def provider(self, workspace: Workspace) -> Provider:
        return self.plugins.provider(workspace.provider)

    def account(self, provider: str, selection: dict[str, str]) -> Account:
        key = (provider, tuple(sorted(selection.items())))
        if key not in self._accounts:
            opened = self.plugins.provider(provider).open(selection, self.secrets)
            self._accounts[key] = opened
        return self._accounts[key]

    def account_id(self, account: Account) -> str:
        """Whose account it is; asked once."""
        if account not in self._account_ids:
            self._account_ids[account] = patiently(account.account_id)
        return self._account_ids[account]

    def account_of(self, workspace: Workspace) -> Account:
        """The account that made it; ProviderError where the credentials are another's."""
        account = self.account(workspace.provider, dict(workspace.selection))
        found = self.account_id(account)
        if found != workspace.account_id:
            raise ProviderError(
                f"{workspace.name} belongs to the account {workspace.account_id} of "
                f"{workspace.provider}, these credentials to {found}",
                hint="set the credentials that made it",
            )
        return account

    def pipeline(
        self, workspace: Workspace, tell: Teller, *, passphrase: Secret | None = None
    ) -> Pipeline:
        provider = self.provider(workspace)
        account = self.account_of(workspace)
        return Pipeline(self.home, self.journal, provider, account, tell, passphrase=passphrase)

    def destroy(self, workspace: Workspace, tell: Teller) -> None:
        """End it, confirmed by the provider. One that was never ordered needs no provider."""
        if workspace.stage in ("planned", "keyed", "cleared"):
            provider = self.provider(workspace)
            account = self.account(workspace.provider, dict(workspace.selection))
            Pipeline(self.home, self.journal, provider, account, tell).run(workspace, goal="gone")
            return
        self.pipeline(workspace, tell).run(workspace, goal="gone")

    def forget(self, workspace: Workspace) -> None:
        """Drop it here alone, for machines whose account is lost; the provider is not asked."""
        with workspace_lock(self.home, workspace):
            write_ssh_config(self.home, self.journal, without=workspace.id)
            WorkspaceFiles(self.home, workspace.id).remove()
            now = int(time.time())
            self.journal.note(workspace.id, "forgotten without asking the provider", now=now)
            state = core.State(stage="forgotten", goal="gone")
            self.journal.save(workspace.id, state, now=now)

    def findings(
        self, *, extra_regions: tuple[str, ...] = ()
    ) -> tuple[list[reap.Finding], list[CodexctlError]]:
        """Every difference at every account and region used, and what could not be looked at."""
        now = int(time.time())
        owner = self.journal.owner()
        live = self.journal.live()
        ended = frozenset(workspace.id for workspace in self.journal.ended())
        busy = frozenset(w.id for w in live if self.busy(w))
        accounts: dict[tuple[str, str], tuple[dict[str, str], set[str]]] = {}
        for provider, selection, account_id, region in self.journal.places():
            regions = accounts.setdefault((provider, account_id), (selection, set()))[1]
            regions.update((region, *extra_regions))
        findings: list[reap.Finding] = []
        errors: list[CodexctlError] = []
        for (provider, account_id), (selection, regions) in sorted(accounts.items()):
            here = [w for w in live if (w.provider, w.account_id) == (provider, account_id)]
            try:
                account = self.account(provider, selection)
                found = self.account_id(account)
                if found != account_id:
                    raise ProviderError(
                        f"the account {account_id} of {provider} cannot be looked at with these "
                        f"credentials, which are those of {found}",
                        hint="set the credentials that made its workspaces, then reap again",
                    )
                listed = patiently(partial(account.list_owned, sorted(regions)))
            except CodexctlError as error:
                errors.append(error)
                continue
            findings += reap.compare(
                here,
                listed,
                provider=provider,
                selection=selection,
                owner=owner,
                busy=busy,
                ended=ended,
                now=now,
            )
        return findings, errors

    def busy(self, workspace: Workspace) -> bool:
        """Another process works on it."""
        try:
            with workspace_lock(self.home, workspace):
                return False
        except CodexctlError:
            return True

    def clear(self, finding: reap.Finding, tell: Teller) -> None:
        """Destroy or forget what a finding names; raises where that could not be confirmed."""
        if finding.workspace is not None:
            self.destroy(finding.workspace, tell)
            return
        account = self.account(finding.provider, dict(finding.selection))
        tries = 0
        while True:
            patiently(lambda: account.destroy(finding.ref))
            if not patiently(lambda: account.resources(finding.ref)):
                WorkspaceFiles(self.home, finding.workspace_id).remove()
                return
            tries += 1
            if tries >= core.MAX_CLEARING:
                raise IncompleteList(f"{finding.name} is not confirmed gone")
            time.sleep(min(core.FIRST_WAIT_S * 2**tries, core.MAX_WAIT_S))

    def adopt(
        self, provider: str, workspace_id: str, name: str, options: dict[str, str]
    ) -> Machine:
        """Take a machine that the journal does not know into it, so that it can be ended.

        Its login key is not here, so ssh to it is not set up.
        """
        from codexctl.provision.journal import Settings
        from codexctl.provision.model import Ref

        chosen = self.plugins.provider(provider)
        selection = chosen.selection(options)
        account = self.account(provider, selection)
        region = options.get("region") or ""
        machine = patiently(lambda: account.describe(Ref(workspace_id, region)))
        if machine is None:
            raise ProviderError(
                f"{provider} has no machine with the id {workspace_id}",
                hint="codexctl workspace reap lists what it has",
            )
        workspace = self.journal.begin(
            name=name,
            provider=provider,
            selection=selection,
            account_id=self.account_id(account),
            plan=Plan(machine.ref.region, "", "", None),
            settings=Settings(bare=True, pair=False),
            expires_at=None,
            now=machine.created_at or int(time.time()),
            workspace_id=workspace_id,
        )
        self.journal.set_machine(workspace.id, machine)
        self.journal.save(workspace.id, core.State(stage="ready"), now=int(time.time()))
        self.journal.set_power(
            workspace.id,
            "stopped" if machine.state == "stopped" else "running",
            now=machine.created_at or int(time.time()),
        )
        account.set_expiry(workspace.ref, self.journal.tags(workspace))
        return machine


def patiently(call: Callable[[], T]) -> T:
    """Make a call without lasting effect again, a few times, after errors that time cures."""
    tries = 0
    while True:
        try:
            return call()
        except ProviderError as error:
            tries += 1
            if error.retry == "never" or tries >= READ_TRIES:
                raise
            wait = getattr(error, "retry_after_s", None)
            time.sleep(min(READ_WAIT_S * 2**tries if wait is None else wait, MAX_READ_WAIT_S))
