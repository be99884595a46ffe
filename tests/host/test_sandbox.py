"""The sandbox's plan over an imagined file system: what is hidden is never shown."""

from __future__ import annotations

import os

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from codexctl.errors import Refused
from codexctl.host.sandbox import (
    SHOWN,
    Kind,
    Plan,
    SandboxRequest,
    Surroundings,
    bwrap_argv,
    plan_sandbox,
    within,
)
from codexctl.host.sandbox_paths import HOME_HIDDEN

HOME = "/home/u"
STATE = "/home/u/.codexctl"


class ImaginedFiles:
    """Folders end with a slash, parents come by themselves; `links` are paths and what they say."""

    def __init__(self, paths: list[str], links: dict[str, str] | None = None) -> None:
        self.links = links or {}
        self.dirs = {"/"}
        self.files: set[str] = set()
        for path in [*paths, *self.links]:
            parent = path.rstrip("/") if path.endswith("/") else os.path.dirname(path)
            while parent not in self.dirs:
                self.dirs.add(parent)
                parent = os.path.dirname(parent)
            if not path.endswith("/") and path not in self.links:
                self.files.add(path)

    def realpath(self, path: str) -> str:
        real, rest, steps = "/", path.split("/"), 0
        while rest:
            part = rest.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                real = os.path.dirname(real)
                continue
            step = os.path.join(real, part)
            if step in self.links and steps < 40:
                steps += 1
                target = self.links[step]
                rest = target.split("/") + rest
                real = "/" if target.startswith("/") else real
            else:
                real = step
        return real

    def _step(self, path: str) -> str:
        """As lstat sees a path: links on the way are followed, one at its end is not."""
        parent = self.realpath(os.path.dirname(path))
        return os.path.join(parent, os.path.basename(path)) if path != "/" else "/"

    def readlink(self, path: str) -> str | None:
        return self.links.get(self._step(path))

    def exists(self, path: str) -> bool:
        step = self._step(path)
        return step in self.links or step in self.dirs or step in self.files

    def is_dir(self, path: str) -> bool:
        return self.realpath(path) in self.dirs

    def links_inside(self, folder: str) -> list[str]:
        return [self.realpath(link) for link in self.links if os.path.dirname(link) == folder]


SYSTEM = ["/usr/bin/", "/usr/lib/", "/etc/passwd", "/etc/shadow", "/opt/tool/bin/"]


def around(**changes: object) -> Surroundings:
    values: dict[str, object] = {
        "home": HOME, "state": STATE, "variables": {"PATH": "/usr/bin:/home/u/.pyenv/shims"},
    }  # fmt: skip
    return Surroundings(**{**values, **changes})  # type: ignore[arg-type] # by name, as written above


def plan(workspace: str, files: ImaginedFiles, *, cwd: str = "", **changes: object) -> Plan:
    return plan_sandbox(around(**changes), SandboxRequest(workspace, cwd or workspace), files)


def kinds(found: Plan) -> dict[str, Kind]:
    return {mount.path: mount.kind for mount in found.mounts}


def test_a_usual_home() -> None:
    files = ImaginedFiles(
        [*SYSTEM, "/home/u/project/", "/home/u/.pyenv/shims/", "/home/u/.ssh/id",
         "/home/u/.cargo/bin/", "/home/u/.cargo/credentials.toml", "/home/u/.gitconfig",
         "/home/u/notes.txt"],
        {"/bin": "usr/bin", "/lib": "usr/lib"},
    )  # fmt: skip
    found = plan("/home/u/project", files)
    assert kinds(found) == {
        "/bin": Kind.SYMLINK,
        "/lib": Kind.SYMLINK,
        "/dev": Kind.DEV,
        "/etc": Kind.READ_ONLY,
        "/home/u": Kind.PRIVATE,
        "/home/u/.cargo": Kind.READ_ONLY,
        "/home/u/.cargo/credentials.toml": Kind.MASKED_FILE,
        "/home/u/.gitconfig": Kind.READ_ONLY,
        "/home/u/.pyenv": Kind.READ_ONLY,
        "/home/u/project": Kind.WRITABLE,
        "/opt": Kind.READ_ONLY,
        "/proc": Kind.PROC,
        "/run": Kind.PRIVATE,
        "/tmp": Kind.PRIVATE,
        "/usr": Kind.READ_ONLY,
        "/var/tmp": Kind.PRIVATE,
    }
    assert not found.shows("/home/u/.ssh/id")
    assert not found.shows("/home/u/notes.txt")
    assert found.shows("/home/u/.pyenv/versions/3/bin/python")
    assert found.placeholders == ()


def test_the_home_as_workspace_keeps_its_credentials() -> None:
    files = ImaginedFiles(
        [*SYSTEM, "/home/u/.ssh/id", "/home/u/.pyenv/shims/", "/home/u/.netrc", "/home/u/.config/",
         "/home/u/.codexctl/identity.key", "/home/u/.codex/auth.json", "/home/u/.bashrc",
         "/home/u/.config/gh/hosts.yml"]
    )  # fmt: skip
    found = plan(HOME, files)
    shown = kinds(found)
    assert shown[HOME] is Kind.WRITABLE
    for folder in (".ssh", ".codexctl", ".config/gh"):
        assert shown[f"{HOME}/{folder}"] is Kind.MASKED_FOLDER
    for file in (".netrc", ".codex/auth.json"):
        assert shown[f"{HOME}/{file}"] is Kind.MASKED_FILE
    for path in (".pyenv", ".bashrc", ".codex"):
        assert shown[f"{HOME}/{path}"] is Kind.READ_ONLY
    # What could be made later: a folder can be masked before it is there, a file cannot.
    assert f"{HOME}/.aws" in found.placeholders
    assert shown[f"{HOME}/.aws"] is Kind.MASKED_FOLDER
    assert f"{HOME}/.npmrc" not in shown


def test_the_folder_above_the_home_as_workspace() -> None:
    files = ImaginedFiles([*SYSTEM, "/home/u/.ssh/id", "/home/other/.ssh/id"])
    found = plan("/home", files)
    assert not found.shows("/home/u/.ssh/id")
    assert found.shows("/home/u/project")


@pytest.mark.parametrize(
    "workspace",
    ["/home/u/.ssh", "/home/u/.ssh/x", "/home/u/.codexctl", "/home/u/.codexctl/ws", "/", "/etc",
     "/usr/lib/x", "/proc/1", "/home/u/vault/x"],
)  # fmt: skip
def test_workspaces_that_are_refused(workspace: str) -> None:
    files = ImaginedFiles([*SYSTEM, f"{workspace}/", "/home/u/vault/"])
    with pytest.raises(Refused):
        plan(workspace, files, hidden=("/home/u/vault",))


def test_a_folder_that_is_hidden_is_no_cwd() -> None:
    files = ImaginedFiles([*SYSTEM, "/home/u/.aws/"])
    with pytest.raises(Refused, match="is hidden from commands"):
        plan(HOME, files, cwd="/home/u/.aws")


def test_links_have_no_second_door() -> None:
    files = ImaginedFiles(
        [*SYSTEM, "/data/u/project/", "/data/u/.pyenv/shims/", "/data/dotfiles/ssh/id",
         "/data/dotfiles/aws/credentials", "/data/u/.aws/config"],
        {"/home/u": "/data/u", "/data/u/.ssh": "../dotfiles/ssh",
         "/data/u/.aws/credentials": "/data/dotfiles/aws/credentials",
         "/data/u/.zshrc": "/data/dotfiles/zshrc"},
    )  # fmt: skip
    found = plan("/data/u/project", files, readable=("/data/dotfiles",))
    assert not found.shows("/data/dotfiles/ssh/id")
    assert not found.shows("/data/dotfiles/aws/credentials")
    assert found.shows("/data/dotfiles/zshrc")
    # The home is where it really is, and its usual name leads there.
    assert kinds(found)["/home/u"] is Kind.SYMLINK
    assert kinds(found)["/data/u"] is Kind.PRIVATE
    assert kinds(found)["/data/u/.zshrc"] is Kind.SYMLINK
    assert kinds(found)["/data/u/.pyenv"] is Kind.READ_ONLY


def test_a_shortcut_among_the_credentials_hides_nothing_large() -> None:
    files = ImaginedFiles(
        [*SYSTEM, "/home/u/project/src/", "/home/u/.ssh/"],
        {"/home/u/.ssh/home": "/home/u", "/home/u/.ssh/etc": "/etc/passwd"},
    )
    found = plan("/home/u/project", files)
    assert found.shows("/home/u/project/src")
    assert found.shows("/etc/passwd")


@pytest.mark.parametrize("state", ["/tmp/x/state", "/home/u/project/.state", "/tmp/ws/state"])
def test_codexctls_own_home_wherever_it_is(state: str) -> None:
    workspace = "/tmp/ws" if state.startswith("/tmp/ws") else "/home/u/project"
    files = ImaginedFiles([*SYSTEM, f"{workspace}/", f"{state}/identity.key"])
    found = plan(workspace, files, state=state)
    assert not found.shows(f"{state}/identity.key")
    assert kinds(found)[workspace] is Kind.WRITABLE


def test_what_variables_name_is_hidden() -> None:
    files = ImaginedFiles(
        [
            *SYSTEM,
            "/home/u/project/codex/auth.json",
            "/home/u/project/kube1",
            "/home/u/project/kube2",
        ]
    )
    variables = {
        "PATH": "/usr/bin",
        "CODEX_HOME": "/home/u/project/codex",
        "KUBECONFIG": "/home/u/project/kube1:/home/u/project/kube2",
    }
    found = plan("/home/u/project", files, variables=variables)
    for path in ("codex/auth.json", "kube1", "kube2"):
        assert kinds(found)[f"/home/u/project/{path}"] is Kind.MASKED_FILE


def test_toolchains_on_the_path() -> None:
    files = ImaginedFiles(
        [*SYSTEM, "/home/u/project/", "/home/u/tools/go/bin/", "/home/u/tools/go/lib/",
         "/home/u/bin/", "/tmp/", "/srv/py/bin/", "/srv/py/pyvenv.cfg", "/data/bin/",
         "/data/private"]
    )  # fmt: skip
    path = "/usr/bin:/home/u/tools/go/bin:/home/u/bin:/srv/py/bin:/data/bin::relative:/:/home:/tmp"
    found = plan("/home/u/project", files, variables={"PATH": path})
    for shown in ("/home/u/tools/go/lib", "/home/u/bin", "/srv/py/pyvenv.cfg", "/data/bin"):
        assert found.shows(shown)
    for hidden in ("/tmp/x", "/home/u/tools/other", "/data/private", "/home/u/x", "/srv/x"):
        assert not found.shows(hidden)


def test_the_policy_may_show_the_home_and_never_its_credentials() -> None:
    files = ImaginedFiles(
        [*SYSTEM, "/home/u/project/", "/home/u/.ssh/id", "/home/u/notes", "/home/v/notes"]
    )
    found = plan("/home/u/project", files, readable=("/home/u", "/"))
    assert kinds(found)["/home/u"] is Kind.READ_ONLY
    assert found.shows("/home/u/notes")
    assert not found.shows("/home/u/.ssh/id")
    assert not found.shows("/home/v/notes")
    found = plan("/home/u/project", files, readable=("/home",))
    assert found.shows("/home/v/notes")
    assert not found.shows("/home/u/notes")


def test_the_command_line() -> None:
    files = ImaginedFiles([*SYSTEM, "/home/u/project/"])
    request = SandboxRequest("/home/u/project", "/home/u/project/sub")
    found = plan_sandbox(around(), request, files)
    argv = bwrap_argv(found, request, as_root=False)
    assert "--unshare-net" in argv
    assert "--cap-add" not in argv
    assert argv[-5:] == ["--remount-ro", "/", "--chdir", "/home/u/project/sub", "--"]
    root = bwrap_argv(found, SandboxRequest(HOME, HOME, network=True), as_root=True, info=False)
    assert "--unshare-net" not in root
    assert "--info-fd" not in root
    assert root[root.index("--cap-drop") + 1] == "ALL"
    assert "CAP_SYS_ADMIN" not in root
    assert "CAP_DAC_READ_SEARCH" not in root


# --- the invariants, over imagined trees ---

NAMES = st.sampled_from(
    [".ssh", ".aws", ".netrc", ".codex", ".cargo", ".pyenv", ".local", "bin", "project", "dotfiles",
     "ssh", "data", "auth.json", "x", ".codexctl", ".config", "gh", "credentials"]
)  # fmt: skip
PLACES = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: f"{HOME}/" + "/".join(parts))
ELSEWHERE = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/data/" + "/".join(parts))
ANY = PLACES | ELSEWHERE


@given(
    files=st.lists(ANY, max_size=12),
    folders=st.lists(ANY, max_size=6),
    links=st.dictionaries(
        ANY, ANY | st.sampled_from(["/", "/home", HOME, "..", "../x"]), max_size=5
    ),
    workspace=ANY | st.sampled_from([HOME, "/home", "/data"]),
    hidden=st.lists(ANY, max_size=2),
    readable=st.lists(ANY | st.sampled_from([HOME, "/home", "/"]), max_size=2),
    state=ANY,
)
@settings(max_examples=300, deadline=None)
def test_nothing_hidden_is_ever_shown(
    files: list[str], folders: list[str], links: dict[str, str], workspace: str,
    hidden: list[str], readable: list[str], state: str,
) -> None:  # fmt: skip
    tree = ImaginedFiles(
        [*SYSTEM, *files, *(f"{p}/" for p in (*folders, workspace)), f"{state}/identity.key"], links
    )
    root = tree.realpath(workspace)
    assume(tree.is_dir(root))
    request = SandboxRequest(root, root)
    surroundings = around(
        state=state,
        hidden=tuple(hidden),
        readable=tuple(readable),
        variables={"PATH": f"/usr/bin:{HOME}/bin:{HOME}/.local/bin"},
    )
    try:
        found = plan_sandbox(surroundings, request, tree)
    except Refused:
        return
    secrets = [f"{HOME}/{path}".rstrip("/") for path in HOME_HIDDEN] + [state, *hidden]
    shown = [mount for mount in found.mounts if mount.kind in SHOWN]
    for secret in map(tree.realpath, secrets):
        assert not [mount for mount in shown if within(mount.path, secret)]
        if tree.exists(secret):
            assert not found.shows(secret)
            assert not found.shows(f"{secret}/inside")
    for mount in shown:
        assert tree.realpath(mount.path) == mount.path
    writable = [mount.path for mount in shown if mount.kind is Kind.WRITABLE]
    assert writable == [root]
    seen: set[str] = set()
    for mount in found.mounts:
        assert mount.path not in seen
        assert not any(within(earlier, mount.path) for earlier in seen)
        seen.add(mount.path)
    masked = [m.path for m in found.mounts if m.kind in (Kind.MASKED_FOLDER, Kind.MASKED_FILE)]
    for mask in masked:
        # A mask in a mask has nothing to be mounted on.
        assert not [other for other in masked if other != mask and within(mask, other)]
