"""The policy file: strict with its line named, and a system-wide file that can only tighten."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import PolicyError, Refused
from codexctl.host.policy import (
    DEFAULT_ENVIRONMENT,
    SCOPES,
    SETTINGS,
    Policy,
    load_policy,
    parse_policy,
    read_layer,
)

HOME = "/home/u"


def policy(owner: str = "", system: str = "") -> Policy:
    return Policy(parse_policy(owner, "owner.toml"), parse_policy(system, "system.toml"), HOME)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("frobnicate = 1", 1, "unknown table [frobnicate]"),
        ("\n[sandbox]\nmode = 'required'\n[shields]\nup = true", 4, "unknown table [shields]"),
        ("[sandbox]\n\nmoode = 'required'", 3, "unknown key moode in [sandbox]"),
        ("[sandbox]\nmode = 'off'", 2, 'sandbox.mode has to be "required" or "optional"'),
        ("[sandbox]\nmode = true", 2, "sandbox.mode has to be"),
        ("sandbox = 3", 1, "sandbox has to be a table"),
        ("[[sandbox]]\nmode = 'required'", 1, "sandbox has to be a table"),
        ("[sandbox]\nmode = 'required", 2, "is not TOML"),
        ("[a\n", 1, "is not TOML"),
        ("[sandbox]\nmode = 'required'\nmode = 'required'", 3, "is not TOML"),
        ("[network]\nmode = 'sometimes'", 2, "network.mode"),
        ("[programs]\ndeny = 'rm'", 2, "has to be a list of texts"),
        ("[programs]\ndeny = ['rm', 3]", 2, "has to be a list of texts"),
        ("[programs]\ndeny = [\n  'rm',\n  'a/b',\n]", 4, "'a/b' is neither the name"),
        ("[programs]\nallow = ['']", 2, "neither the name"),
        ("[workspace]\nroots = [\n'/srv',\n\n'src']", 5, "'src' is not an absolute path"),
        ("[environment]\nallow = ['A-B']", 2, "'A-B' is not the name of a variable"),
        ("[environment]\nallow = ['A*B']", 2, "'A*B'"),
        ("[devices]\nscopes = ['view', 'root']", 2, "'root' is not one of view, exec, approve"),
        ("sandbox.mode = 'required'\nsandbox.mod = 1", 2, "unknown key mod"),
        ("sandbox = { mode = 'required', x = 1 }", 1, "unknown key x"),
        ('["sandbox"]\n"mode" = 1', 2, "sandbox.mode"),
    ],
)
def test_what_cannot_be_obeyed_names_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "/etc/p.toml")
    assert caught.value.message.startswith(f"/etc/p.toml line {line}: ")
    assert words in caught.value.message


def test_files_that_cannot_be_trusted(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    assert read_layer(str(path)) == {}
    path.write_text("[sandbox]\nmode = 'optional'")
    path.chmod(0o646)
    with pytest.raises(PolicyError, match="can be changed by others"):
        read_layer(str(path))
    path.chmod(0o600)
    assert read_layer(str(path))["sandbox.mode"].value == "optional"
    path.write_bytes(b"[sandbox]\n# \xff\n")
    with pytest.raises(PolicyError, match="line 2: is not UTF-8"):
        read_layer(str(path))
    path.write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(PolicyError, match="larger than"):
        read_layer(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(PolicyError, match="not a regular file"):
        read_layer(str(path))
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(PolicyError, match="not a regular file"):
        read_layer(str(path))


def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PolicyError, match="cannot read /x: Permission denied"):
        read_layer("/x")


def test_defaults() -> None:
    found = policy()
    assert found.sandbox_required
    assert found.network == "on-request"
    assert found.scopes == set(SCOPES)
    assert found.hidden == ()
    assert found.full_argv
    assert not found.sync_each
    assert found.allows_variable("LC_ALL")
    for secret in ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN", "SSH_AUTH_SOCK"):
        assert not found.allows_variable(secret)
    assert found.allows_variable("ANYTHING", from_device=True)
    found.check_program(["anything"])


def test_the_owner_replaces_defaults_and_the_system_tightens() -> None:
    owner = """
        sandbox.mode = "optional"
        network.mode = "always"
        sandbox.hidden = ["~/vault"]
        environment.allow = ["PATH", "AWS_*"]
        programs.deny = ["rm"]
        """
    found = policy(owner)
    assert (found.sandbox_required, found.network) == (False, "always")
    assert found.allows_variable("AWS_PROFILE")
    assert not found.allows_variable("LANG")
    found = policy(
        owner,
        """
        sandbox.mode = "required"
        network.mode = "on-request"
        sandbox.hidden = ["/srv/x"]
        environment.allow = ["PATH", "LANG"]
        programs.deny = ["dd"]
        devices.scopes = ["view"]
        """,
    )
    assert (found.sandbox_required, found.network) == (True, "on-request")
    assert [path for path, _ in found.hidden] == ["/home/u/vault", "/srv/x"]
    assert found.allows_variable("PATH")
    assert not found.allows_variable("AWS_PROFILE")
    assert not found.allows_variable("LANG")
    assert found.scopes == {"view"}
    for program in ("rm", "dd"):
        with pytest.raises(Refused, match=f"denies {program}"):
            found.check_program([program])


def test_folders() -> None:
    found = policy()
    assert found.check_folder("/home/u/p/sub", "/home/u/p") == "/home/u/p"
    with pytest.raises(Refused, match="outside the workspace"):
        found.check_folder("/home/u/px", "/home/u/p")
    found = policy("[workspace]\nroots = ['~/src', '~/other']")
    assert found.check_folder("/home/u/src/a/b", "/home/u/src/a") == "/home/u/src/a"
    assert found.check_folder("/home/u/other/x", "/home/u/src/a") == "/home/u/other"
    # What is writable is never more than a root, also where the workspace is larger.
    assert found.check_folder("/home/u/src/a", "/home/u") == "/home/u/src"
    with pytest.raises(Refused, match=r"no workspace root of owner\.toml:2"):
        found.check_folder("/home/u/elsewhere", "/home/u")
    found = policy(system="[workspace]\nroots = ['~/src']")
    assert found.check_folder("/home/u/src/a", "/home/u") == "/home/u/src"
    with pytest.raises(Refused, match=r"system\.toml:2"):
        found.check_folder("/home/u", "/home/u")
    with pytest.raises(Refused, match="outside the workspace"):
        found.check_folder("/home/u/src/b", "/home/u/src/a")
    with pytest.raises(Refused, match="has none"):
        policy("[workspace]\nroots = []").check_folder("/x", "/x")


def test_programs_by_name_and_by_path() -> None:
    found = policy("[programs]\nallow = ['git', '/opt/x/run']\ndeny = ['~/bin/git']")
    found.check_program(["git", "/usr/bin/git"])
    found.check_program(["run", "/opt/x/run"])
    for names in (["run", "/tmp/run"], ["git", "/home/u/bin/git"], ["ls", "/bin/ls"]):
        with pytest.raises(Refused):
            found.check_program(names)
    with pytest.raises(Refused, match="empty"):
        policy("[programs]\nallow = []").check_program(["ls"])


def test_effective_says_where_each_value_comes_from() -> None:
    found = policy(
        "[programs]\ndeny = [\n 'rm',\n]\n[environment]\nallow = ['PATH', 'X_*']",
        "[network]\nmode = 'never'\n[programs]\ndeny = ['dd']\n[environment]\nallow = ['X_1']",
    ).effective()
    assert set(found) == set(SETTINGS)
    assert found["programs.deny"] == [
        {"value": "rm", "source": "owner.toml:3"},
        {"value": "dd", "source": "system.toml:4"},
    ]
    assert found["network.mode"] == [{"value": "never", "source": "system.toml:2"}]
    assert found["sandbox.mode"] == [{"value": "required", "source": "default"}]
    assert found["environment.allow"] == [{"value": "X_1", "source": "system.toml:6"}]
    assert found["programs.allow"] is None
    assert found["sandbox.hidden"] == []


def test_loading_both(tmp_path: Path) -> None:
    owner, system = tmp_path / "o.toml", tmp_path / "s.toml"
    owner.write_text("[sandbox]\nmode = 'optional'\r\n")
    found = load_policy(str(owner), system_path=str(system), home=HOME)
    assert not found.sandbox_required
    system.write_text("[sandbox]\nmode = 'required'")
    assert load_policy(str(owner), system_path=str(system)).sandbox_required


# --- properties ---

PATHS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=3).map(lambda p: "/" + "/".join(p))
ITEMS: dict[str, st.SearchStrategy[str]] = {
    "sandbox.hidden": PATHS, "sandbox.readable": PATHS, "workspace.roots": PATHS,
    "environment.allow": st.sampled_from(["A", "AB", "A*", "*", "B"]),
    "environment.accept": st.sampled_from(["A", "AB", "A*", "*", "B"]),
    "programs.allow": st.sampled_from(["ls", "rm", "/bin/ls"]),
    "programs.deny": st.sampled_from(["ls", "rm", "/bin/rm"]),
    "devices.scopes": st.sampled_from(SCOPES),
}  # fmt: skip
FILES = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(setting.choices)
        if setting.choices
        else st.lists(ITEMS[name], max_size=3)
        for name, setting in SETTINGS.items()
    },
)


def written(values: dict[str, Any]) -> str:
    import json

    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def permits(found: Policy) -> set[str]:
    """Everything that a policy lets happen, as far as these files can tell it apart."""
    out = set()
    if not found.sandbox_required:
        out.add("no sandbox")
    out |= {f"network {mode}" for mode in ("never", "on-request", "always")[: 1 + (
        "never", "on-request", "always").index(found.network)]}  # fmt: skip
    out |= {f"variable {n}" for n in ("A", "AB", "B", "C") if found.allows_variable(n)}
    out |= {f"set {n}" for n in ("A", "AB", "B") if found.allows_variable(n, from_device=True)}
    out |= {f"scope {scope}" for scope in found.scopes}
    hidden = {path for path, _ in found.hidden}
    out |= {f"see {path}" for path in ("/", "/a", "/a/b", "/c") if path not in hidden}
    for path in found.readable:
        out |= {
            f"read {q}" for q in ("/", "/a", "/a/b", "/a/b/c", "/c") if (q + "/").startswith(path)
        }
    for program in (("ls", "/bin/ls"), ("rm", "/bin/rm")):
        try:
            found.check_program(program)
            out.add(f"run {program[0]}")
        except Refused:
            pass
    for path in ("/a", "/a/b", "/a/b/c", "/b", "/c"):
        for workspace in ("/a", "/a/b", "/c"):
            try:
                root = found.check_folder(path, workspace)
            except Refused:
                continue
            out.add(f"in {path} of {workspace}")
            out |= {f"write {q} {path} {workspace}" for q in ("/a", "/a/b", "/b", "/c")
                    if (q + "/").startswith(root.rstrip("/") + "/")}  # fmt: skip
    return out


@given(FILES, FILES)
@settings(max_examples=300, deadline=None)
def test_a_system_file_only_tightens(owner: dict[str, Any], system: dict[str, Any]) -> None:
    alone = policy(written(owner))
    both = policy(written(owner), written(system))
    assert permits(both) <= permits(alone)


@given(FILES)
@settings(max_examples=100, deadline=None)
def test_each_value_names_the_line_it_stands_in(values: dict[str, Any]) -> None:
    text = written(values)
    lines = text.split("\n")
    for name, entry in parse_policy(text, "p").items():
        assert lines[entry.source.line - 1].startswith(f"{name} =")


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_obeyed_or_refused(text: str) -> None:
    try:
        tomllib.loads(text)
        parses = True
    except (tomllib.TOMLDecodeError, RecursionError):
        parses = False
    try:
        parse_policy(text, "p")
    except PolicyError as error:
        said = error.message
    else:
        assert parses
        return
    assert said.startswith("p line ")


def test_the_default_environment_has_no_room_for_secrets() -> None:
    for name in DEFAULT_ENVIRONMENT:
        assert not any(word in name for word in ("KEY", "TOKEN", "SECRET", "PASS", "SOCK", "PROXY"))
        assert name != "*"


def test_the_documented_example_shows_every_setting() -> None:
    import re

    page = (Path(__file__).parents[2] / "docs" / "host.md").read_text()
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert example is not None
    assert set(parse_policy(example[1], "docs/host.md")) == set(SETTINGS)
