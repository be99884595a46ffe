"""The commits and contents that a target lacks, as one `git bundle` in the carrier's folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import NamedTuple

from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.snapshot import REFS, SENT, Snapshot, replace_refs

BUNDLE = "bundle"
MAX_OFFERED = 1024
FIRST_OFFERED = 64  # commits back from HEAD that are offered one by one; then ever fewer
HASH_BYTES = 1 << 20


class Part(NamedTuple):
    """A file that is sent: its size in bytes and its SHA-256."""

    size: int
    sha256: str


def offer(carrier: Git, snapshot: Snapshot) -> list[str]:
    """Commits that a target may have: what was sent before, and a sample of the history."""
    sent = carrier.text("for-each-ref", "--format=%(objectname)", SENT).split()
    tips = [snapshot.head, snapshot.upstream[1] if snapshot.upstream else None]
    tips += [stash.oid for stash in snapshot.stashes]
    known = [tip for tip in tips if tip is not None]
    offered = dict.fromkeys([*sent, *known])
    if known:
        commits = carrier.run("rev-list", "--topo-order", *known).decode().split()
        offered |= dict.fromkeys(commits[:FIRST_OFFERED])
        step = at = FIRST_OFFERED
        while at < len(commits) and len(offered) < MAX_OFFERED:
            offered[commits[at]] = None
            step = step * 5 // 4
            at += step
        offered[commits[-1]] = None
    return list(offered)[:MAX_OFFERED]


def make_bundle(carrier: Git, folder: str, haves: list[str]) -> Part:
    """Write everything of the snapshot that is not reachable from `haves`; hashed as it stands."""
    path = os.path.join(folder, BUNDLE)
    told = carrier.feed((f"{oid}\n".encode() for oid in haves), "cat-file", "--batch-check")
    haves = [line.split()[0].decode() for line in told.splitlines() if b" commit " in line]
    _follow_sent(carrier, haves)
    refs = carrier.text("for-each-ref", "--format=%(refname)", REFS).split()
    lines = [f"{name}\n".encode() for name in refs] + [f"^{oid}\n".encode() for oid in haves]
    carrier.feed(lines, "bundle", "create", "--quiet", path, "--stdin")
    return hash_file(path)


def _follow_sent(carrier: Git, haves: list[str]) -> None:
    """Make what the target has of an earlier handoff the parent of this one's snapshot.

    Git leaves out the contents of a commit that is there only for its children.
    """
    for name in ("work", "meta"):
        sent = carrier.ask("rev-parse", "--verify", "--quiet", f"{SENT}/{name}")
        if sent in haves:
            new = f"{REFS}/{name}"
            message = carrier.text("log", "-1", "--format=%B", new).strip()
            tree = f"{new}^{{tree}}"
            commit = carrier.text("commit-tree", "-p", str(sent), "-m", message, tree)
            carrier.run("update-ref", new, commit)


def hash_file(path: str, limit: int | None = None) -> Part:
    """Size and SHA-256 of a file, or of its first `limit` bytes."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while limit is None or size < limit:
            block = file.read(HASH_BYTES if limit is None else min(HASH_BYTES, limit - size))
            if not block:
                break
            digest.update(block)
            size += len(block)
    return Part(size, digest.hexdigest())


def keep_sent(folder: str) -> None:
    """Remember what both sides have now, so that the next handoff sends only what is new."""
    carrier = Git(os.path.join(folder, "carrier.git"))
    listed = carrier.text("for-each-ref", "--format=%(refname) %(objectname)", REFS)
    pairs = (line.split(" ") for line in listed.splitlines())
    replace_refs(carrier, SENT, {name.removeprefix(f"{REFS}/"): oid for name, oid in pairs})
    for name in ("bundle", "rollout"):
        if os.path.lexists(os.path.join(folder, name)):
            os.unlink(os.path.join(folder, name))
    shutil.rmtree(os.path.join(folder, "view"), ignore_errors=True)
