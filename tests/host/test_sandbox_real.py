"""The real sandbox, as whoever runs the tests and, where that is root, as nobody as well."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codexctl.errors import Refused
from codexctl.host import sandbox_probe
from codexctl.host.sandbox import SandboxRequest, Surroundings
from codexctl.host.sandbox_probe import Facts, PrivateFiles, Sandbox, explain, gather_facts
from tests.host.conftest import without_info

pytestmark = pytest.mark.usefixtures("sandboxed")
AS_ROOT = os.geteuid() == 0
WAIT_S = 20


class Inside:
    """Runs shell lines in the sandbox of a person with a home of their own."""

    def __init__(self, folder: Path, user: str) -> None:
        self.user = user
        self.home = folder / "home"
        self.workspace = self.home / "project"
        self.state = folder / "state"
        for path in (self.workspace, self.state):
            path.mkdir(parents=True)
        self.variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home)}
        self.hidden: tuple[str, ...] = ()
        self.state.joinpath("identity.key").write_text("secret key")

    def write(self, path: str, text: str, *, mode: int = 0o644) -> Path:
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def sh(
        self,
        line: str,
        *,
        workspace: Path | None = None,
        network: bool = False,
        stdin: int | None = subprocess.DEVNULL,
    ) -> str:
        """What the line says on stdout and stderr."""
        root = os.path.realpath(workspace or self.workspace)
        sandbox = Sandbox(
            Surroundings(str(self.home), str(self.state), self.variables, self.hidden), root
        )
        if self.user:
            entry = pwd.getpwnam(self.user)
            for path in (self.home.parent, *self.home.parent.rglob("*")):
                os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
            sandbox._bwrap, sandbox._setsid = shutil.which("bwrap") or "", "setsid"
            become = ["setpriv", "--reuid", self.user, "--regid", str(entry.pw_gid),
                      "--clear-groups"]  # fmt: skip
        else:
            sandbox.probe()
            become = []
        argv = sandbox.command(SandboxRequest(root, root, network), ["/bin/sh", "-c", line])
        done = subprocess.run(
            [*become, *without_info(argv)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.variables,
            timeout=WAIT_S,
            check=False,
        )
        return done.stdout.decode()


@pytest.fixture(params=["", pytest.param("nobody", marks=pytest.mark.skipif(
    not AS_ROOT, reason="becoming another user needs root"))])  # fmt: skip
def inside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inside]:
    # pytest's own folder above it is closed to others.
    folder = Path("/var/tmp" if request.param else tmp_path) / f"codexctl-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o755)
    try:
        yield Inside(folder, request.param)
    finally:
        shutil.rmtree(folder)


CREDENTIALS = [
    ".ssh/id_ed25519", ".aws/credentials", ".gnupg/private", ".netrc", ".config/gh/hosts.yml",
    ".config/gcloud/credentials.db", ".azure/token", ".kube/config", ".docker/config.json",
    ".codex/auth.json", ".git-credentials", ".pypirc", ".npmrc", ".cargo/credentials.toml",
]  # fmt: skip


@pytest.mark.parametrize("where", ["project", "home"])
def test_credentials_cannot_be_read(inside: Inside, where: str) -> None:
    for path in CREDENTIALS:
        inside.write(path, "the secret", mode=0o600)
    inside.write("vault/x", "the secret")
    inside.hidden = (str(inside.home / "vault"),)
    workspace = inside.home if where == "home" else inside.workspace
    said = inside.sh(
        "for f in " + " ".join([*CREDENTIALS, "vault/x"]) + "; do cat ~/$f; done;"
        f"cat {inside.state}/identity.key; find ~ -type f -exec cat {{}} +",
        workspace=workspace,
    )
    assert "the secret" not in said
    assert "secret key" not in said
    # Nor can they be replaced: a key put there would let somebody in later.
    inside.sh("for f in " + " ".join(CREDENTIALS) + "; do echo forged >~/$f; done")
    inside.sh("echo forged >>~/.ssh/authorized_keys; mv ~/.ssh ~/moved", workspace=workspace)
    assert not (inside.home / ".ssh/authorized_keys").exists()
    for path in CREDENTIALS:
        assert (inside.home / path).read_text() == "the secret"


def test_credentials_that_come_later_have_their_place_masked(inside: Inside) -> None:
    said = inside.sh("mkdir -p ~/.ssh; echo x >~/.ssh/id; ls -a ~/.ssh", workspace=inside.home)
    assert "Read-only file system" in said
    folder = inside.home / ".ssh"
    assert list(folder.iterdir()) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_links_to_and_from_credentials(inside: Inside) -> None:
    inside.write("dotfiles/ssh/id", "the secret")
    inside.write("dotfiles/netrc", "the secret")
    (inside.home / ".ssh").symlink_to("dotfiles/ssh")
    (inside.home / ".netrc").symlink_to(inside.home / "dotfiles/netrc")
    (inside.workspace / "way").symlink_to(inside.state)
    said = inside.sh(
        "cat .ssh/id .netrc dotfiles/ssh/id dotfiles/netrc project/way/identity.key",
        workspace=inside.home,
    )
    assert "secret" not in said


def test_codexctls_home_in_the_workspace_or_below_tmp(inside: Inside) -> None:
    inside.state = inside.workspace / "state"
    inside.state.mkdir()
    (inside.state / "identity.key").write_text("the secret")
    said = inside.sh(f"cat {inside.state}/identity.key; ls state; echo x >state/policy.toml")
    assert "the secret" not in said
    assert "Read-only file system" in said


def test_a_workspace_behind_a_link_keeps_its_name(inside: Inside) -> None:
    real = inside.home.parent / "real"
    inside.home.rename(real)
    inside.home.symlink_to("real")
    said = inside.sh("pwd; echo x >file; ls ~/project; cd ~/project && pwd -P")
    assert said.split() == [str(real / "project"), "file", str(real / "project")]


def test_a_workspace_below_tmp(tmp_path: Path) -> None:
    if not os.path.realpath(tmp_path).startswith("/tmp/"):
        pytest.skip("pytest works elsewhere")
    inside = Inside(tmp_path, "")
    (tmp_path / "other").write_text("other")
    said = inside.sh("echo x >file; cat file; ls /tmp; ls ../..; touch /tmp/mine && echo made")
    assert "x\n" in said
    assert "other" not in said
    assert "made" in said
    assert not Path("/tmp/mine").exists()


def test_the_system_cannot_be_changed_nor_its_secrets_read(inside: Inside) -> None:
    said = inside.sh("cat /etc/shadow; cat /etc/passwd | head -1; touch /usr/x /etc/x /x; id -u")
    assert "root:x:0" in said
    assert said.count("Read-only file system") == 3
    assert ":$" not in said
    denied = said.splitlines()[0]
    assert "Permission denied" in denied


def test_toolchains_are_readable_and_not_writable(inside: Inside) -> None:
    inside.write(".pyenv/shims/tool", "#!/bin/sh\necho tool runs\n", mode=0o755)
    for path in (".nvm/x", ".cargo/bin/x", ".local/bin/x", ".local/share/uv/python/x"):
        inside.write(path, "x")
    inside.variables["PATH"] += f":{inside.home}/.pyenv/shims"
    said = inside.sh("tool; cd ~; cat .nvm/x .cargo/bin/x .local/bin/x .local/share/uv/python/x")
    assert said == "tool runs\nxxxx"
    for workspace in (inside.workspace, inside.home):
        said = inside.sh("echo y >~/.pyenv/shims/tool; echo y >~/.cargo/bin/y", workspace=workspace)
        assert said.count("Read-only file system") == 2


def test_the_rest_of_the_home_is_private_and_gone_afterwards(inside: Inside) -> None:
    inside.write("notes.txt", "private notes")
    said = inside.sh("cat ~/notes.txt; mkdir -p ~/.cache/x && echo cached >~/.cache/x/y; ls -A ~")
    assert "private notes" not in said
    assert ".cache" in said
    assert not (inside.home / ".cache").exists()


def test_processes_and_the_machine_are_out_of_reach(inside: Inside) -> None:
    # What is written is what stands there already: a failing test must not change the machine.
    said = inside.sh(
        f"ls -d /proc/[0-9]* | wc -l; kill -0 {os.getppid()} && echo reached;"
        "for f in sys/kernel/core_pattern sys/kernel/threads-max sys/vm/swappiness; do"
        '  value=$(cat /proc/$f); echo "$value" 2>/dev/null >/proc/$f && echo wrote $f;'
        "done; test -w /proc/sysrq-trigger && echo writable; ls /run;"
        "ls /dev | grep -c -e sd -e vd -e mem"
    )
    assert int(said.split()[0]) < 10
    assert "reached" not in said
    assert "wr" not in said
    assert said.split()[-1] == "0"


@pytest.mark.skipif(not AS_ROOT, reason="only root has something to lose here")
def test_root_cannot_take_the_masks_off(inside: Inside) -> None:
    inside.write(".ssh/id", "the secret")
    said = inside.sh(
        "umount ~/.ssh; umount -l ~/.ssh; umount /etc/shadow; mount -o remount,rw /usr;"
        "unshare -m umount ~/.ssh; unshare -rm umount ~/.ssh; nsenter -t 1 -m cat ~/.ssh/id;"
        "mknod /tmp/d b 254 0; chroot / true; cat ~/.ssh/id; touch /usr/x;"
        "mkdir /tmp/p && mount -t proc proc /tmp/p",
        workspace=inside.home,
    )
    assert "the secret" not in said
    assert not Path("/usr/x").exists()
    assert not Path("/tmp/p").exists()


@pytest.mark.skipif(not AS_ROOT, reason="another user's files need root")
def test_root_owns_what_the_workspace_holds(tmp_path: Path) -> None:
    inside = Inside(tmp_path, "")
    file = inside.write("project/theirs", "x", mode=0o600)
    os.chown(file, 12345, 12345)
    said = inside.sh("cat theirs; echo y >theirs; touch new; chown 12345 new; chmod 640 theirs")
    assert said == "x"
    assert (inside.workspace / "new").stat().st_uid == 12345


def test_a_command_cannot_type_into_the_hosts_terminal(inside: Inside) -> None:
    python = "/usr/bin/python3"
    if not os.path.exists(python):
        pytest.skip("no system python")
    code = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSTI, b'x')"
    pid, terminal = os.forkpty()
    if pid == 0:
        os.write(1, inside.sh(f'{python} -c "{code}"; echo status $?', stdin=None).encode())
        os._exit(0)
    said = b""
    try:
        while b"status" not in said:
            said += os.read(terminal, 4096)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    assert b"status 1" in said


def test_private_files_of_the_system_are_found(tmp_path: Path) -> None:
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
        (tmp_path / f"{name}-dir").mkdir()
        (tmp_path / f"{name}-dir").chmod(mode | 0o111)
    (tmp_path / "open-dir" / "closed").write_text("x")
    (tmp_path / "open-dir" / "closed").chmod(0o640)
    (tmp_path / "link").symlink_to("closed")
    look = PrivateFiles([str(tmp_path)]).look

    def found() -> list[str]:
        return sorted(os.path.relpath(path, tmp_path) for path in look()[0])

    assert found() == ["closed", "closed-dir", "open-dir/closed"]
    assert look()[1] == ()
    # What comes later is found, what has gone is forgotten.
    (tmp_path / "open-dir" / "later").write_text("x")
    (tmp_path / "open-dir" / "later").chmod(0o600)
    (tmp_path / "closed").unlink()
    os.utime(tmp_path / "open-dir", (1, 1))  # two changes may be within one tick of its clock
    os.utime(tmp_path, (1, 1))
    assert found() == ["closed-dir", "open-dir/closed", "open-dir/later"]


def test_a_tree_too_large_to_look_through_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_probe, "MAX_SCANNED_ENTRIES", 3)
    for number in range(5):
        (tmp_path / str(number)).mkdir()
    assert PrivateFiles([str(tmp_path), "/missing"]).look() == ((), (str(tmp_path),))


# --- where it does not start ---

FACTS = Facts(
    platform="linux", installed=True, distribution="debian", as_root=False, in_container=False,
    max_user_namespaces=1000, unprivileged_clone=None, apparmor_restricts=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "stderr", "words", "hint"),
    [
        (FACTS._replace(platform="darwin"), "", "needs Linux", "sandbox.mode"),
        (FACTS._replace(installed=False), "", "not installed", "apt-get install bubblewrap"),
        (FACTS._replace(installed=False, distribution="fedora"), "", "not", "dnf install"),
        (FACTS._replace(max_user_namespaces=0), "", "switched off", "user.max_user_namespaces"),
        (FACTS._replace(unprivileged_clone=0), "", "for root only", "unprivileged_userns_clone"),
        (FACTS._replace(apparmor_restricts=1), "bwrap: setting up uid map: Permission denied",
         "AppArmor", "apparmor_restrict_unprivileged_userns=0"),
        (FACTS._replace(in_container=True), "bwrap: Creating new namespace failed",
         "inside this container: Creating", "seccomp=unconfined"),
        (FACTS, "bwrap: something else", "cannot start: something else", "sandbox.mode"),
    ],
)  # fmt: skip
def test_why_it_does_not_start(facts: Facts, stderr: str, words: str, hint: str) -> None:
    error = explain(facts, stderr)
    assert error.exit_code == 126
    assert words in error.message
    assert hint in error.hint


PROBE = """
import sys
from codexctl.errors import Refused
from codexctl.host.sandbox import Surroundings
from codexctl.host.sandbox_probe import Sandbox
try:
    Sandbox(Surroundings(sys.argv[1], sys.argv[1] + "/s", {}), sys.argv[1]).probe()
except Refused as error:
    sys.exit(f"{error}; {error.hint}")
"""


def probe_in(namespaces: list[str], setup: str, folder: Path) -> str:
    """What a trial of the real bwrap says in namespaces of its own that `setup` has prepared."""
    done = subprocess.run(
        ["unshare", *namespaces, "sh", "-euc", f'{setup} "$@"', "sh",
         sys.executable, "-c", PROBE, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return done.stderr


@pytest.mark.skipif(not AS_ROOT, reason="whoever makes the namespaces has to be root")
def test_a_system_without_user_namespaces_is_told_how_to_have_them(tmp_path: Path) -> None:
    said = probe_in(
        ["--user", "--map-user=1000", "--keep-caps"],
        "echo 0 >/proc/sys/user/max_user_namespaces; "
        "exec setpriv --inh-caps=-all --ambient-caps=-all",
        tmp_path,
    )
    assert "user namespaces are switched off on this host" in said
    assert "sysctl -w user.max_user_namespaces" in said


@pytest.mark.skipif(not AS_ROOT, reason="whoever makes the namespaces has to be root")
def test_inside_a_container_that_gives_no_namespaces(tmp_path: Path) -> None:
    said = probe_in(
        ["--user", "--map-root-user", "--mount"],
        "mount -t tmpfs none /run; : >/run/.containerenv; "
        "echo 0 >/proc/sys/user/max_mnt_namespaces; exec",
        tmp_path,
    )
    assert "the sandbox cannot start inside this container" in said
    assert "seccomp=unconfined" in said


def test_facts_of_this_machine() -> None:
    facts = gather_facts()
    assert facts.platform == sys.platform
    assert facts.as_root == AS_ROOT


def test_it_is_tried_again_until_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    sandbox = Sandbox(Surroundings(str(tmp_path), str(tmp_path / "s"), {}), str(tmp_path / "ws"))
    (tmp_path / "ws").mkdir()
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2; exit 1\n"
    )
    broken.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{broken.parent}:{path}")
    with pytest.raises(Refused, match="No permissions"):
        asyncio.run(sandbox.ready())
    monkeypatch.setenv("PATH", path)
    asyncio.run(sandbox.ready())


def test_a_trial_makes_nothing(tmp_path: Path) -> None:
    Sandbox(Surroundings(str(tmp_path), str(tmp_path / "s"), {}), str(tmp_path)).probe()
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_the_sandbox_does_not_show(tmp_path: Path) -> None:
    program = tmp_path / "elsewhere" / "tool"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "ws").mkdir()
    sandbox = Sandbox(Surroundings(str(tmp_path), str(tmp_path / "s"), {}), str(tmp_path / "ws"))
    sandbox.probe()
    request = SandboxRequest(str(tmp_path / "ws"), str(tmp_path / "ws"))
    with pytest.raises(Refused, match="outside what the sandbox"):
        sandbox.command(request, ["tool"], program=str(program))
