"""Compare the journal with what providers list, both ways, and name each difference.

    expired     in the journal, past its ttl
    half-made   its provision did not come to an end, and nobody is working on it
    leaving     its destruction was begun and is not confirmed
    vanished    in the journal as made, not at the provider
    unknown     at the provider with this home's mark or an id that ended here, not in the journal
    foreign     another home's, past its ttl: told, never touched
    unreadable  codexctl's mark without a readable id: told, never touched; it counts as unconfirmed

The comparison is a function of its arguments; listing and destroying are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from codexctl.provision.journal import Workspace
from codexctl.provision.model import Ref, Resource

Kind = Literal["expired", "half-made", "leaving", "vanished", "unknown", "foreign", "unreadable"]
TO_DESTROY: tuple[Kind, ...] = ("expired", "half-made", "leaving", "unknown")
TO_FORGET: tuple[Kind, ...] = ("vanished",)


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `workspace` where the journal knows it, `resources` what the cloud lists."""

    kind: Kind
    name: str
    provider: str
    selection: tuple[tuple[str, str], ...]
    """Which of the provider's accounts, as in the journal."""
    region: str
    workspace_id: str
    """"" where there is none."""
    workspace: Workspace | None
    resources: tuple[Resource, ...]

    @property
    def bills(self) -> bool:
        return any(resource.bills for resource in self.resources)

    @property
    def ref(self) -> Ref:
        return Ref(self.workspace_id, self.region)


def compare(
    workspaces: Iterable[Workspace],
    listed: Iterable[Resource],
    *,
    provider: str,
    selection: Mapping[str, str],
    owner: str,
    busy: frozenset[str],
    ended: frozenset[str],
    now: int,
) -> list[Finding]:
    """What differs at one account.

    `workspaces`: the live ones of this account; `listed`: everything the account has in the regions
    used; `busy`: ids that another process works on, which are left alone; `ended`: ids that were
    once in this journal.
    """
    by_id: dict[str, list[Resource]] = {}
    chosen = tuple(sorted(selection.items()))
    findings: list[Finding] = []

    def found(
        kind: Kind, name: str, region: str, workspace: Workspace | None, there: Sequence[Resource]
    ) -> None:
        workspace_id = there[0].tags.workspace_id if there and there[0].tags is not None else ""
        if workspace is not None:
            workspace_id = workspace.id
        findings.append(
            Finding(kind, name, provider, chosen, region, workspace_id, workspace, tuple(there))
        )

    for resource in listed:
        if resource.tags is None:
            found("unreadable", resource.name, resource.region, None, [resource])
        else:
            by_id.setdefault(resource.tags.workspace_id, []).append(resource)
    for workspace in workspaces:
        there = by_id.pop(workspace.id, [])
        kind = None if workspace.id in busy else _of_journal(workspace, there, now)
        if kind is not None:
            found(kind, workspace.name, workspace.plan.region, workspace, there)
    for workspace_id, there in sorted(by_id.items()):
        kind = None if workspace_id in busy else _of_cloud(there, owner, workspace_id in ended, now)
        if kind is not None:
            found(kind, there[0].name, there[0].region, None, there)
    return findings


def _of_journal(workspace: Workspace, there: Sequence[Resource], now: int) -> Kind | None:
    if workspace.goal == "gone":
        return "leaving"
    machine = any(resource.kind == "machine" for resource in there)
    if workspace.expired(now):
        return "expired"
    if workspace.stage_has_machine and not machine:
        return "vanished"
    if workspace.stage != "ready":
        return "half-made"
    return None


def _of_cloud(there: Sequence[Resource], owner: str, ended: bool, now: int) -> Kind | None:
    tags = [resource.tags for resource in there if resource.tags is not None]
    # What has only a name carries the id alone; the owner is then known by the other resources.
    if ended or any(tag.owner == owner for tag in tags):
        return "unknown"
    expired = any(tag.expires_at is not None and now >= tag.expires_at for tag in tags)
    return "foreign" if expired else None
