"""Git as a handoff runs it: plumbing only, with a configuration that no repository can choose.

A working tree may have been written by an agent, its `.git` included. So nothing that would make
git start a program is taken from a repository: no hooks, no fsmonitor, no filters of its own
config, no `ext::` transports. What the person configured for all repositories holds.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple

from codexctl.errors import CodexctlError

READ_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 20  # a path with its facts; the kernel's own limit is far below
MAX_OUTPUT_BYTES = 16 << 20  # of what is read at once; lists are streamed
UMASK = 0o022  # modes on the target are those of the source, whatever the person's umask
TOLD_BYTES = 400  # of git's own words in an error

FIXED = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.safecrlf=false",
    "core.splitIndex=false",
    "core.bigFileThreshold=1m",
    "commit.gpgSign=false",
    "diff.external=",
    "diff.ignoreSubmodules=none",
    "fetch.recurseSubmodules=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "index.sparse=false",
    "init.defaultBranch=main",
    "log.showSignature=false",
    "protocol.ext.allow=never",
    "submodule.recurse=false",
    "transfer.advertiseSID=false",
)
# The commits that only carry a snapshot: the same content has the same id. Git drops what a reflog
# says of second 0.
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "codexctl"), ("EMAIL", "codexctl@localhost"), ("DATE", "@1 +0000"))
}
_KEPT = ("PATH", "HOME", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "TMPDIR")


class GitFailed(CodexctlError):
    """A git command that had to work did not; the message has git's last words."""

    code = "git"


class Git(NamedTuple):
    """One repository as the commands of a handoff see it. All paths are absolute."""

    git_dir: str
    work_tree: str | None = None
    index_file: str | None = None
    config: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        env = {
            **kept,
            **IDENTITY,
            "LC_ALL": "C",
            "GIT_DIR": self.git_dir,
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
        }
        chosen = (
            ("GIT_WORK_TREE", self.work_tree),
            ("GIT_INDEX_FILE", self.index_file),
        )
        return env | {name: value for name, value in chosen if value is not None}

    def argv(self, arguments: Sequence[str | bytes]) -> list[str | bytes]:
        options = [part for setting in (*FIXED, *self.config) for part in ("-c", setting)]
        return ["git", *options, *arguments]

    def run(
        self,
        *arguments: str | bytes,
        env: dict[str, str] | None = None,
        ok: Sequence[int] = (0,),
        timeout: float | None = None,
    ) -> bytes:
        """The output of a command. GitFailed where its status is not in `ok`."""
        try:
            done = subprocess.run(
                self.argv(arguments),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=self.work_tree or self.git_dir,
                env=self.environment() | (env or {}),
                check=False,
                timeout=timeout,
                umask=UMASK,
            )
        except subprocess.TimeoutExpired:
            raise GitFailed(f"git {_told(arguments)} did not end within {timeout:.0f} s") from None
        except OSError as error:
            raise _no_git(error) from error
        if done.returncode not in ok:
            raise failure(arguments, done.stderr)
        if len(done.stdout) > MAX_OUTPUT_BYTES:
            raise GitFailed(f"git {_told(arguments)} said more than {MAX_OUTPUT_BYTES} bytes")
        return done.stdout

    def text(self, *arguments: str | bytes) -> str:
        """The output without its last line end."""
        return os.fsdecode(self.run(*arguments)).rstrip("\n")

    def ask(self, *arguments: str | bytes) -> str | None:
        """As `text`; None where the command says no by its status."""
        try:
            return self.text(*arguments)
        except GitFailed:
            return None

    def records(self, *arguments: str | bytes) -> Iterator[bytes]:
        """The NUL-ended records of a command's output, one by one."""
        with tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    self.argv(arguments),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=self.work_tree or self.git_dir,
                    env=self.environment(),
                    umask=UMASK,
                )
            except OSError as error:
                raise _no_git(error) from error
            assert process.stdout is not None
            with process:
                try:
                    yield from split_records(process.stdout)
                except GeneratorExit:
                    process.kill()
                    raise
            if process.returncode != 0:
                stderr.seek(0)
                raise failure(arguments, stderr.read(READ_BYTES))

    def feed(self, records: Iterable[bytes], *arguments: str | bytes) -> bytes:
        """Run a command whose input is `records`, each written as it comes; its output."""
        # Its output goes to a file: nobody would read a pipe while the input is written.
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    self.argv(arguments),
                    stdin=subprocess.PIPE,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=self.work_tree or self.git_dir,
                    env=self.environment(),
                    umask=UMASK,
                )
            except OSError as error:
                raise _no_git(error) from error
            assert process.stdin is not None
            try:
                for record in records:
                    process.stdin.write(record)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended, and says why
            except BaseException:
                process.kill()
                process.wait()
                raise
            if process.wait() != 0:
                stderr.seek(0)
                raise failure(arguments, stderr.read(READ_BYTES))
            stdout.seek(0)
            return stdout.read(MAX_OUTPUT_BYTES)


def split_records(stream: IO[bytes]) -> Iterator[bytes]:
    """What stands between NUL bytes. GitFailed where a record has no end."""
    rest = b""
    while block := stream.read(READ_BYTES):
        *whole, rest = (rest + block).split(b"\0")
        yield from whole
        if len(rest) > MAX_RECORD_BYTES:
            raise GitFailed(f"git gave a record of over {MAX_RECORD_BYTES} bytes")
    if rest:
        raise GitFailed("git ended inside a record")


def failure(arguments: Sequence[str | bytes], stderr: bytes) -> GitFailed:
    """What a failed command says, in one sentence."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    telling = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines[-1:]
    words = "; ".join(line.partition(": ")[2] or line for line in telling)[:TOLD_BYTES]
    hint = ""
    if "No space left" in words or "Disk quota" in words:
        hint = "free some space on that disk, then run the same command again"
    return GitFailed(f"git {_told(arguments)} failed: {words or 'no reason given'}", hint=hint)


def _told(arguments: Sequence[str | bytes]) -> str:
    return os.fsdecode(arguments[0])


def _no_git(error: OSError) -> GitFailed:
    return GitFailed(
        f"cannot run git: {error.strerror}", hint="install git on that host, version 2.30 or later"
    )


def init_bare(path: str, object_format: str, alternates: Iterable[str] = ()) -> Git:
    """A bare repository at `path` that borrows the objects of `alternates`; kept if there."""
    git = Git(path)
    if not os.path.isdir(os.path.join(path, "objects")):
        os.makedirs(path, mode=0o700, exist_ok=True)
        git.run(
            "init", "--quiet", "--bare", "--template=", f"--object-format={object_format}", path
        )
    folder = os.path.join(path, "objects", "info")
    os.makedirs(folder, exist_ok=True)
    lines = "".join(f"{quote_alternate(one)}\n" for one in alternates)
    with open(os.path.join(folder, "alternates"), "w") as file:
        file.write(lines)
    return git


def quote_alternate(path: str) -> str:
    """A line of `objects/info/alternates`; GitFailed for a path that it cannot hold."""
    if "\n" in path:
        raise GitFailed(f"{path!r} has a line end in its name", hint="rename that folder")
    if path.startswith(("#", '"')):
        raise GitFailed(f"{path!r} is not an absolute path")
    return path
