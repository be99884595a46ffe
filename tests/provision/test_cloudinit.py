"""The user data: parsed before it is sent; nothing in it can end its place; steps are checked."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import CodexctlError, UsageError
from codexctl.paths import Home
from codexctl.provision.cloudinit import Wanted, check_settings, render_user_data, steps_of
from codexctl.provision.errors import UserDataTooLarge
from codexctl.provision.readiness import cloud_init_problem
from codexctl.secret import Secret

PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA: #{}'\"\n-----END\n"


def wanted(**changes: object) -> Wanted:
    values: dict[str, object] = {
        "name": "box",
        "user": "codex",
        "sudo": True,
        "packages": (),
        "setup": (),
        "bare": True,
        "public_key": "ssh-ed25519 AAAA codexctl-1",
        "host_key_private": Secret(PRIVATE),
        "host_key_public": "ssh-ed25519 BBBB",
        "close_metadata": False,
        "ends_itself": False,
        "expires_at": None,
        "template": "",
        **changes,
    }
    return Wanted(**values)  # type: ignore[arg-type]


ENDING = {"close_metadata": True, "ends_itself": True, "expires_at": 99}


def rendered(tmp_path: Path, limit: int = 1 << 20, **changes: object) -> dict[str, object]:
    text = render_user_data(Home(str(tmp_path)), wanted(**changes), limit_bytes=limit).reveal()
    assert text.startswith("#cloud-config\n")
    return dict(yaml.safe_load(text))


def test_the_machine_is_born_with_our_host_key_and_no_other(tmp_path: Path) -> None:
    data = rendered(tmp_path)
    assert data["ssh_deletekeys"] is True
    assert data["ssh_keys"] == {"ed25519_private": PRIVATE, "ed25519_public": "ssh-ed25519 BBBB"}
    assert data["ssh_pwauth"] is False
    assert data["disable_root"] is True
    assert "disable_ec2_metadata" not in data


def test_options_reach_it(tmp_path: Path) -> None:
    data = rendered(tmp_path, bare=False, packages=("zsh",), **ENDING)
    assert data["disable_ec2_metadata"] is True
    packages = data["packages"]
    assert isinstance(packages, list)
    assert {"zsh", "bubblewrap", "python3-venv"} <= set(packages)
    files = {file["path"]: file for file in data["write_files"]}  # type: ignore[attr-defined]
    assert files["/var/lib/codexctl/expires_at"]["content"] == "99\n"
    assert "/etc/systemd/system/codexctl-end.timer" in files
    assert "/var/lib/codexctl/steps/10-codex" in files


@pytest.mark.parametrize(
    ("text", "ends"), [("99", True), ("9999999999", False), ("never", False), ("", False)]
)
def test_the_machine_ends_itself_when_it_is_time(tmp_path: Path, text: str, ends: bool) -> None:
    data = rendered(tmp_path, **ENDING)
    files = {file["path"]: file["content"] for file in data["write_files"]}  # type: ignore[attr-defined]
    (tmp_path / "expires_at").write_text(f"{text}\n")
    script = files["/var/lib/codexctl/end"].replace("/var/lib/codexctl", str(tmp_path))
    (tmp_path / "end").write_text(script.replace("exec shutdown", "echo shutdown"))
    done = subprocess.run(["sh", tmp_path / "end"], capture_output=True, text=True)
    assert done.stdout.strip() == ("shutdown -h now" if ends else "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_accepts_the_units_that_end_the_machine(tmp_path: Path) -> None:
    data = rendered(tmp_path, **ENDING)
    units = []
    for file in data["write_files"]:  # type: ignore[attr-defined]
        name = os.path.basename(file["path"])
        if name.startswith("codexctl-end."):
            text = file["content"].replace("/var/lib/codexctl/end", "/bin/true")
            (tmp_path / name).write_text(text)
            units.append(str(tmp_path / name))
    assert len(units) == 2
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *units],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert [line for line in done.stderr.splitlines() if "codexctl-end" in line] == []


def test_without_an_expiry_it_can_still_be_given_one(tmp_path: Path) -> None:
    data = rendered(tmp_path, ends_itself=True)
    files = {file["path"]: file["content"] for file in data["write_files"]}  # type: ignore[attr-defined]
    assert files["/var/lib/codexctl/expires_at"] == "never\n"


def test_a_limit_is_told_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserDataTooLarge, match="takes 100"):
        rendered(tmp_path, limit=100)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("#cloud-config\na: [\n", "not YAML at line"),
        ("#cloud-config\n- a\n", "not a mapping"),
        ("a: 1\n", "does not begin with #cloud-config"),
        ("#cloud-config\na: 1\n", "lost the host key"),
        (
            "#cloud-config\nssh_deletekeys: true\n"
            "ssh_keys: {ed25519_private: {{ host_key_private | yaml }}}\n",
            "lost the user's key",
        ),
        ("#cloud-config\n{{ nonsense }}\n", "'nonsense' is undefined"),
    ],
)
def test_a_template_of_ones_own_is_held_to_it(tmp_path: Path, template: str, sentence: str) -> None:
    own = tmp_path / "mine.j2"
    own.write_text(template)
    with pytest.raises(CodexctlError, match=sentence) as caught:
        rendered(tmp_path, template=str(own))
    assert "BEGIN OPENSSH" not in str(caught.value)


@given(name=st.text(max_size=40), key=st.text(max_size=60), package=st.text(max_size=20))
@settings(max_examples=60, deadline=None)
def test_no_value_can_end_its_place(
    tmp_path_factory: pytest.TempPathFactory, name: str, key: str, package: str
) -> None:
    home = tmp_path_factory.getbasetemp()
    data = rendered(home, host_key_public=key, packages=(package,), setup=())
    assert set(data) >= {"users", "ssh_keys", "runcmd"}
    assert data["ssh_keys"]["ed25519_public"] == key  # type: ignore[index]
    assert data["packages"] == [package]


def run_steps(tmp_path: Path, *scripts: str) -> Path:
    """Run the wrapper of the template on these steps, in a folder in place of /var/lib/codexctl."""
    paths = []
    for number, script in enumerate(scripts):
        path = tmp_path / f"s{number}.sh"
        path.write_text(script)
        paths.append(str(path))
    data = rendered(tmp_path, setup=tuple(paths))
    folder = tmp_path / "codexctl"
    for file in data["write_files"]:  # type: ignore[attr-defined]
        target = folder / file["path"].removeprefix("/var/lib/codexctl/")
        target.parent.mkdir(parents=True, exist_ok=True)
        content = file["content"].encode()
        if file.get("encoding") == "b64":
            content = base64.b64decode(content)
        content = content.replace(b"/var/lib/codexctl", str(folder).encode())
        target.write_bytes(content)
        target.chmod(int(file["permissions"], 8))
    subprocess.run([str(folder / "steps" / "run")], check=False)
    return folder


def test_each_step_is_checked_and_its_output_kept(tmp_path: Path) -> None:
    folder = run_steps(tmp_path, "echo one", "#!/bin/sh\necho two >&2\nexit 4\n", "echo three")
    assert (folder / "20-s0-sh.log").read_text() == "one\n"
    assert (folder / "21-s1-sh.log").read_text() == "two\n"
    assert not (folder / "22-s2-sh.log").exists()
    assert (folder / "failed").read_text() == "21-s1-sh 4\n"
    assert (folder / "step").read_text() == "21-s1-sh\n"


def test_a_script_without_a_first_line_stops_at_its_first_failure(tmp_path: Path) -> None:
    folder = run_steps(tmp_path, "false\necho not reached\n")
    assert (folder / "20-s0-sh.log").read_text() == ""
    assert (folder / "failed").exists()


def test_all_well_ends_with_done(tmp_path: Path) -> None:
    folder = run_steps(tmp_path, "true")
    assert (folder / "step").read_text() == "done\n"
    assert not (folder / "failed").exists()


def test_steps_come_in_the_order_they_were_named(tmp_path: Path) -> None:
    paths = []
    for name in ("z", "a"):
        (tmp_path / name).write_text("true")
        paths.append(str(tmp_path / name))
    assert [step.name for step in steps_of(paths, bare=False)] == ["10-codex", "20-z", "21-a"]


@pytest.mark.parametrize(
    ("user", "package"), [("Root", "a"), ("-x", "a"), ("a b", "a"), ("root", "a"), ("ok", "a b")]
)
def test_settings_that_cannot_work(user: str, package: str) -> None:
    with pytest.raises(UsageError):
        check_settings(user, [package], [], creates=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"v1": {"datasource": "x", "errors": []}}', None),
        ('{"v1": {"datasource": "x", "errors": ["no mirror"]}}', "no mirror"),
        ('{"v1": {"errors": []}}\n10-codex 22', "the step 10-codex ended with status 22"),
        ("", "does not parse"),
        ("{}", "does not parse"),
        ('{"v1": 3}', "does not parse"),
    ],
)
def test_cloud_inits_own_result_is_read(text: str, problem: str | None) -> None:
    said = cloud_init_problem(text)
    assert said is None if problem is None else problem in str(said)


@given(st.text(max_size=200))
def test_any_result_is_read_without_a_surprise(text: str) -> None:
    cloud_init_problem(text)
