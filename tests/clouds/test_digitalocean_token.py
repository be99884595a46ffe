"""Where the token of DigitalOcean comes from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from codexctl_plugins._digitalocean_token import doctl_paths, doctl_token, find_token
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.provision.errors import CredentialsMissing
from codexctl.secret import Secret
from tests.clouds.conftest import Store

CONFIG = """\
access-token: dop_v1_default
api-url: ""
auth-contexts:
  default: "true"
  client-a: dop_v1_a
  'client b': "dop_v1_b" # the second
context: client-a
droplet:
  create:
    access-token: not-this
    client-a: nor-this
output: text
"""


def write_config(folder: Path, text: str = CONFIG) -> None:
    path = folder / ".config" / "doctl" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("context", "token"),
    [
        ("", "dop_v1_a"),
        ("default", "dop_v1_default"),
        ("client-a", "dop_v1_a"),
        ("client b", "dop_v1_b"),
        ("nobody", None),
    ],
)
def test_contexts_of_doctl(context: str, token: str | None) -> None:
    assert doctl_token(CONFIG, context) == (token and Secret(token))


def test_a_configuration_without_contexts() -> None:
    assert doctl_token("access-token: abc\n") == Secret("abc")
    assert doctl_token("") is None
    assert doctl_token("access-token:\n") is None


PLAIN = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)


@settings(max_examples=60, deadline=None)
@given(contexts=st.dictionaries(PLAIN, PLAIN, min_size=1), data=st.data())
def test_what_doctl_writes_is_read_back(contexts: dict[str, str], data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(sorted(contexts)))
    if chosen == "default":
        return
    lines = "".join(f"  {name}: {token}\n" for name, token in contexts.items())
    token = doctl_token(f"auth-contexts:\n{lines}context: {chosen}\noutput: text\n")
    assert token is not None
    assert token.reveal() == contexts[chosen]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.text(max_size=10))
def test_any_text_is_read_without_a_crash(text: str, context: str) -> None:
    doctl_token(text, context)


def test_the_environment_comes_first_then_the_store_then_doctl(tmp_path: Path) -> None:
    write_config(tmp_path)
    store = Store()
    store.put("digitalocean", Secret("kept"))
    home = {"HOME": str(tmp_path)}
    both = {"DIGITALOCEAN_ACCESS_TOKEN": "second", "DIGITALOCEAN_TOKEN": " first\n"}
    assert find_token("", home | both, store) == Secret("first")
    del both["DIGITALOCEAN_TOKEN"]
    assert find_token("", home | both, store) == Secret("second")
    assert find_token("", home, store) == Secret("kept")
    assert find_token("", home, Store()) == Secret("dop_v1_a")
    assert find_token("", home | {"DIGITALOCEAN_CONTEXT": "default"}, Store()) == Secret(
        "dop_v1_default"
    )


def test_a_context_asks_doctl_alone(tmp_path: Path) -> None:
    write_config(tmp_path)
    environ = {"HOME": str(tmp_path), "DIGITALOCEAN_TOKEN": "not this one"}
    assert find_token("client b", environ, Store()) == Secret("dop_v1_b")
    with pytest.raises(CredentialsMissing, match="there is no doctl context other"):
        find_token("other", environ, Store())


def test_no_token_names_every_place_and_the_login_command(tmp_path: Path) -> None:
    with pytest.raises(CredentialsMissing) as caught:
        find_token("", {"HOME": str(tmp_path)}, Store())
    for place in ("DIGITALOCEAN_TOKEN", "codexctl's own store", f"{tmp_path}/.config/doctl"):
        assert place in str(caught.value)
    assert "codexctl provider login digitalocean" in caught.value.hint


def test_an_unreadable_configuration_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".config" / "doctl" / "config.yaml").mkdir(parents=True)
    with pytest.raises(CredentialsMissing):
        find_token("", {"HOME": str(tmp_path)}, Store())


@pytest.mark.parametrize(
    ("platform", "environ", "first"),
    [
        ("linux", {"HOME": "/h"}, "/h/.config/doctl/config.yaml"),
        ("linux", {"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, "/x/doctl/config.yaml"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Application Support/doctl/config.yaml"),
        ("win32", {"APPDATA": "/a", "HOME": "/h"}, "/a/doctl/config.yaml"),
    ],
)
def test_doctl_keeps_its_file_where_the_platform_wants(
    platform: str, environ: dict[str, str], first: str
) -> None:
    assert doctl_paths(environ, platform)[0] == first.replace("/", os.sep)
