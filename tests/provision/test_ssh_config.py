"""codexctl's ssh config: concrete names, one Include, nothing left, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codexctl.errors import CodexctlError, StateError, UsageError
from codexctl.paths import Home
from codexctl.provision.ssh_config import Entry, SshConfig, host_lines, resolve

HOST = "Host other\n    HostName other.example\n"


def entry(folder: Path, name: str = "box", **changes: object) -> Entry:
    values: dict[str, object] = {
        "name": name,
        "id": "0" * 32,
        "address": "192.0.2.7",
        "port": 2222,
        "user": "codex",
        "key": str(folder / "with space" / "100%" / "id_ed25519"),
        "known_hosts": str(folder / "with space" / "known_hosts"),
        "alias": "codexctl-" + "0" * 32,
        "proxy_jump": "",
        "provider": "reference",
        **changes,
    }
    return Entry(**values)  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path) -> SshConfig:
    (tmp_path / "ssh").mkdir(mode=0o700)
    return SshConfig(Home(str(tmp_path / "home")), str(tmp_path / "ssh" / "config"))


def test_ssh_itself_finds_the_workspace(config: SshConfig, tmp_path: Path) -> None:
    config.write([entry(tmp_path), entry(tmp_path, "second", address="2001:db8::1")])
    said = resolve(config.user_config, "box")
    assert said["hostname"] == "192.0.2.7"
    assert said["port"] == "2222"
    # ssh -G shows the escape; what it opens has one percent sign.
    assert said["identityfile"] == str(tmp_path / "with space" / "100%%" / "id_ed25519")
    assert said["userknownhostsfile"] == str(tmp_path / "with space" / "known_hosts")
    assert said["hostkeyalias"] == "codexctl-" + "0" * 32
    assert said["stricthostkeychecking"] in ("true", "yes")
    assert resolve(config.user_config, "second")["hostname"] == "2001:db8::1"


def test_a_jump_host_is_written(config: SshConfig, tmp_path: Path) -> None:
    config.write([entry(tmp_path, proxy_jump="me@bastion:2200")])
    assert resolve(config.user_config, "box")["proxyjump"] == "me@bastion:2200"


def test_a_home_with_a_space_is_included(tmp_path: Path) -> None:
    config = SshConfig(Home(str(tmp_path / "my home")), str(tmp_path / "config"))
    config.write([entry(tmp_path)])
    assert resolve(config.user_config, "box")["hostname"] == "192.0.2.7"


def test_the_last_workspace_takes_every_trace_with_it(config: SshConfig, tmp_path: Path) -> None:
    Path(config.user_config).write_text(HOST)
    os.chmod(config.user_config, 0o640)
    config.write([entry(tmp_path)])
    assert Path(config.user_config).read_text().splitlines()[1:] == HOST.splitlines()
    assert resolve(config.user_config, "other")["hostname"] == "other.example"
    config.write([])
    assert Path(config.user_config).read_text() == HOST
    assert os.stat(config.user_config).st_mode & 0o777 == 0o640
    assert not os.path.exists(config.own)


def test_a_config_that_codexctl_made_goes_with_it(config: SshConfig, tmp_path: Path) -> None:
    config.write([entry(tmp_path)])
    assert os.stat(config.user_config).st_mode & 0o777 == 0o600
    config.write([])
    assert not os.path.exists(config.user_config)


def test_writing_twice_is_writing_once(config: SshConfig, tmp_path: Path) -> None:
    Path(config.user_config).write_text(HOST)
    config.write([entry(tmp_path)])
    before = Path(config.user_config).read_text(), Path(config.own).read_text()
    config.write([entry(tmp_path)])
    assert (Path(config.user_config).read_text(), Path(config.own).read_text()) == before


def test_an_include_further_down_is_moved_to_the_top(config: SshConfig, tmp_path: Path) -> None:
    Path(config.user_config).write_text(f"{HOST}Include {config.own}\n")
    config.write([entry(tmp_path)])
    lines = Path(config.user_config).read_text().splitlines()
    assert lines == [f"Include {config.own}", *HOST.splitlines()]


def test_a_symlink_stays_one(config: SshConfig, tmp_path: Path) -> None:
    dotfiles = tmp_path / "dotfiles"
    dotfiles.write_text(HOST)
    os.symlink(dotfiles, config.user_config)
    config.write([entry(tmp_path)])
    assert os.path.islink(config.user_config)
    assert dotfiles.read_text().startswith("Include ")
    config.write([])
    assert os.path.islink(config.user_config)
    assert dotfiles.read_text() == HOST


def test_a_missing_ssh_folder_is_made_private(tmp_path: Path) -> None:
    config = SshConfig(Home(str(tmp_path / "home")), str(tmp_path / "none" / "config"))
    config.write([entry(tmp_path)])
    assert os.stat(tmp_path / "none").st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_ssh_folder_is_told(config: SshConfig, tmp_path: Path) -> None:
    os.chmod(tmp_path / "ssh", 0o500)
    with pytest.raises(StateError, match="cannot write"):
        config.write([entry(tmp_path)])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Host box\n", 1),
        ("# x\n\nHost a b box\n", 3),
        ('host = "box"\n', 1),
        ("Host *\n  User me\nHost other !no box\n", 3),
    ],
)
def test_an_alias_of_the_persons_is_refused_with_its_place(
    config: SshConfig, tmp_path: Path, text: str, line: int
) -> None:
    Path(config.user_config).write_text(text)
    with pytest.raises(UsageError, match=f"line {line}"):
        config.write([entry(tmp_path)])
    assert Path(config.user_config).read_text() == text
    assert not os.path.exists(config.own)


def test_an_alias_in_an_included_file_is_refused(config: SshConfig, tmp_path: Path) -> None:
    (tmp_path / "ssh" / "work.d").mkdir()
    included = tmp_path / "ssh" / "work.d" / "one"
    included.write_text("\nHost box\n")
    Path(config.user_config).write_text("Include work.d/*\n")
    with pytest.raises(UsageError) as caught:
        config.check_name("box")
    assert f"{included} line 2" in str(caught.value)


def test_includes_that_go_in_circles_end(config: SshConfig) -> None:
    Path(config.user_config).write_text(f"Include {config.user_config}\nHost a\n")
    assert any(words == ["a"] for _, _, words in host_lines(config.user_config))


@pytest.mark.parametrize("name", ["", "Box", "a b", "*", "-x", "x-", "a" * 64, "a/b", "ä"])
def test_only_concrete_labels_are_names(config: SshConfig, name: str) -> None:
    with pytest.raises(UsageError):
        config.check_name(name)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ nowhere }}", "'nowhere' is undefined"),
        ("{% for %}", "does not render"),
        ("Host {{ workspaces[0].name }}\n  HostName 192.0.2.99\n", "hostname 192.0.2.99, not"),
        ("Host box\n  Nonsense yes\n", "ssh does not understand"),
    ],
)
def test_a_template_that_does_not_do_changes_nothing(
    config: SshConfig, tmp_path: Path, template: str, sentence: str
) -> None:
    config.write([entry(tmp_path)])
    before = Path(config.own).read_text()
    own = tmp_path / "home" / "templates" / "ssh_config.j2"
    own.parent.mkdir()
    own.write_text(template)
    with pytest.raises(CodexctlError, match=sentence) as caught:
        config.write([entry(tmp_path), entry(tmp_path, "second")])
    assert caught.value.hint
    assert Path(config.own).read_text() == before


def test_two_writers_at_once_leave_one_whole_file(config: SshConfig, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from codexctl.paths import Home\n"
        "from tests.provision.test_ssh_config import SshConfig, entry\n"
        "config = SshConfig(Home(sys.argv[1]), sys.argv[2])\n"
        "for _ in range(5): config.write([entry(Path(sys.argv[1]), n) for n in ('box', 'two')])\n"
    )
    Path(config.user_config).write_text(HOST)
    root = str(Path(__file__).parents[2])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, config.home.path, config.user_config], cwd=root
        )
        for _ in range(3)
    ]
    assert [run.wait(timeout=60) for run in runs] == [0, 0, 0]
    text = Path(config.user_config).read_text()
    assert text == f"Include {config.own}\n{HOST}"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r"), max_size=300))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_persons_text_survives_being_there_and_gone(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.mktemp("config")
    config = SshConfig(Home(str(folder / "home")), str(folder / "config"))
    config.home.ensure()
    Path(config.user_config).write_text(text)
    config._add_include()
    config._drop_include()
    left = Path(config.user_config).read_text() if os.path.exists(config.user_config) else ""
    assert left == text or not text.strip("\n")
