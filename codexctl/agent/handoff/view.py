"""A repository's index and working tree, seen through a git dir with no configuration of theirs."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase

from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.repository import Repository

GITLINK = b"160000"
EMPTY_TREE = {
    "sha1": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "sha256": "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}


def make_view(folder: str, repository: Repository) -> Git:
    """A git dir with a copy of the repository's index and none of its configuration."""
    view = os.path.join(folder, "view")
    shutil.rmtree(view, ignore_errors=True)
    for name in ("objects/info", "refs", "info"):
        os.makedirs(os.path.join(view, name))
    with open(os.path.join(view, "HEAD"), "w") as file:
        file.write("ref: refs/heads/none\n")
    for name, text in repository.info.items():
        with open(os.path.join(view, "info", name), "wb") as raw:
            raw.write(os.fsencode(text))
    with open(os.path.join(view, "objects", "info", "alternates"), "w") as file:
        file.write(f"{repository.objects}\n")
    version = "1" if repository.object_format == "sha256" else "0"
    lines = [f"[core]\n\trepositoryformatversion = {version}\n\tbare = false\n"]
    if version == "1":
        lines.append("[extensions]\n\tobjectFormat = sha256\n")
    with open(os.path.join(view, "config"), "w") as file:
        file.writelines(lines)
    for name in os.listdir(repository.git_dir):
        if name == "index" or name.startswith("sharedindex."):
            source = os.path.join(repository.git_dir, name)
            if stat.S_ISREG(os.lstat(source).st_mode):
                shutil.copy2(source, os.path.join(view, name))
    config = tuple(
        f"{key}={value}" for key, value in repository.settings.items() if key.startswith("core.")
    )
    return Git(view, work_tree=repository.top, config=config)


class Index:
    """How the index differs from HEAD, and the working tree from the index."""

    def __init__(self, view: Git, base: str) -> None:
        self.unmerged: dict[bytes, list[bytes]] = {}
        self.links: list[tuple[bytes, str]] = []
        self.assumed: list[bytes] = []
        self.skipped: list[bytes] = []
        self.attributes: list[bytes] = []
        for record in view.records("ls-files", "--stage", "-v", "-z"):
            facts, _, path = record.partition(b"\t")
            tag, mode, oid, stage = facts.split(b" ")
            if stage != b"0":
                self.unmerged.setdefault(path, []).append(
                    b"%s %s %s\t%s\0" % (mode, oid, stage, path)
                )
            if mode == GITLINK:
                self.links.append((path, oid.decode()))
            if path.endswith(b".gitattributes"):
                self.attributes.append(path)
            if tag.islower():
                self.assumed.append(path)
            if tag in b"Ss":
                self.skipped.append(path)
        options = ("-z", "--raw", "--no-abbrev", "--no-renames", "--ignore-submodules=all")
        self.delta: list[bytes] = []  # lines for update-index --index-info
        self.new_objects: set[bytes] = set()
        self.added: list[bytes] = []
        staged = set()
        for line, path in _raw(
            view, "diff-index", "--cached", "--ita-invisible-in-index", *options, base
        ):
            staged.add(path)
            mode, oid, status = line[1], line[3], line[4]
            if status == b"U":
                continue
            self.delta.append(b"%s %s 0\t%s\0" % (mode, oid, path))
            if mode not in (GITLINK, b"000000"):
                self.new_objects.add(oid)
            if status == b"A":
                self.added.append(path)
        for path, stages in self.unmerged.items():
            self.delta.append(b"000000 %s 0\t%s\0" % (b"0" * len(stages[0].split(b" ")[1]), path))
            self.delta += stages
            self.new_objects |= {
                line.split(b" ")[1] for line in stages if not line.startswith(GITLINK)
            }
        visible = ("--ita-visible-in-index", *options)
        self.intended = [
            path
            for _, path in _raw(view, "diff-index", "--cached", *visible, base)
            if path not in staged
        ]
        # dict as an ordered set: diff-files tells an unmerged path twice.
        self.changed: dict[bytes, None] = {}
        self.deleted: list[bytes] = []
        for line, path in _raw(view, "diff-files", *options):
            if line[4] == b"D":
                self.deleted.append(path)
            else:
                self.changed[path] = None
        for path in (*self.assumed, *self.skipped):
            self.changed[path] = None  # git does not look at these; a handoff carries them


def _raw(view: Git, *arguments: str) -> Iterator[tuple[list[bytes], bytes]]:
    """Facts and path of each line of git's raw diff format."""
    records = view.records(*arguments)
    for facts in records:
        yield facts[1:].split(b" "), next(records)


def others(view: Git, globs: tuple[str, ...]) -> Iterator[bytes]:
    """Untracked files, and the ignored ones that a glob names (its * crosses folders)."""
    yield from view.records("ls-files", "--others", "--exclude-standard", "-z")
    if globs:
        options = ("--others", "--ignored", "--exclude-standard", "-z")
        for path in view.records("ls-files", *options):
            name = os.fsdecode(path)
            if any(fnmatchcase(name, glob) for glob in globs):
                yield path
