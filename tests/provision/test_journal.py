"""The journal: what survives, what it costs, and what it says of a disk that fails."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import CodexctlError, StateError, UsageError
from codexctl.paths import Home
from codexctl.provision.core import State
from codexctl.provision.expiry import expired_notice
from codexctl.provision.journal import Journal, Settings, Workspace
from codexctl.provision.model import Machine, Plan, Price, Ref, Tags
from codexctl.provision.secrets import HomeSecrets
from codexctl.secret import Secret

PLAN = Plan("north", "small", "linux", Price.per_hour("3.6"), Price.per_hour("0.36"))


@pytest.fixture
def journal(tmp_path: Path):
    with Journal(Home(str(tmp_path))) as journal:
        yield journal


def begin(journal: Journal, name: str = "box", **changes: object) -> Workspace:
    values: dict[str, object] = {
        "name": name,
        "provider": "reference",
        "selection": {"profile": "work"},
        "account_id": "a1",
        "plan": PLAN,
        "settings": Settings(packages=("zsh",), setup=("/x",)),
        "expires_at": None,
        "now": 1000,
        **changes,
    }
    return journal.begin(**values)  # type: ignore[arg-type]


def test_everything_is_read_as_it_was_written(journal: Journal) -> None:
    made = begin(journal)
    machine = Machine(Ref(made.id, "north", "m1"), "running", "192.0.2.1", host_keys=("a b",))
    journal.set_machine(made.id, machine)
    found = journal.by_name("box")
    assert (found.plan, found.settings, found.machine) == (PLAN, made.settings, machine)
    assert found.selection == {"profile": "work"}
    assert found.ref == Ref(made.id, "north", "m1")
    assert journal.places() == [("reference", {"profile": "work"}, "a1", "north")]
    assert journal.owner() == journal.owner()
    assert os.stat(journal.path).st_mode & 0o777 == 0o600


def test_a_name_is_taken_until_its_workspace_is_confirmed_gone(journal: Journal) -> None:
    made = begin(journal)
    with pytest.raises(UsageError, match="already"):
        begin(journal)
    journal.save(made.id, State(stage="cleared", goal="gone"), now=1100)
    with pytest.raises(UsageError, match="already"):
        begin(journal)
    journal.save(made.id, State(stage="forgotten", goal="gone"), now=1200)
    begin(journal)
    assert [w.ended_at for w in journal.ended()] == [1200]
    with pytest.raises(UsageError, match="there is no workspace nobody") as caught:
        journal.by_name("nobody")
    assert "box" in caught.value.hint


def test_cost_follows_power(journal: Journal) -> None:
    made = begin(journal)
    assert made.spent(9999) == 0
    journal.set_power(made.id, "running", now=2000)
    journal.set_power(made.id, "running", now=2500)
    assert journal.by_id(made.id).spent(3000) == Decimal("1.0000")
    journal.set_power(made.id, "stopped", now=3000)
    assert journal.by_id(made.id).spent(4000) == Decimal("1.1000")
    journal.set_power(made.id, "none", now=4000)
    assert journal.by_id(made.id).spent(99999) == Decimal("1.1000")


@given(st.lists(st.tuples(st.sampled_from(["none", "running", "stopped"]), st.integers(0, 9000))))
@settings(max_examples=40, deadline=None)
def test_what_was_counted_stays_whatever_the_clock_does(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int]]
) -> None:
    with Journal(Home(str(tmp_path_factory.mktemp("home")))) as journal:
        made = begin(journal)
        before = 0
        for power, now in changes:
            journal.set_power(made.id, power, now=now)
            found = journal.by_id(made.id)
            spent = found.spent(0)
            assert spent is not None
            assert spent >= 0
            assert found.ran_s + found.stood_s >= before
            before = found.ran_s + found.stood_s


def test_events_are_kept_within_a_bound(journal: Journal) -> None:
    made = begin(journal)
    for number in range(520):
        journal.note(made.id, f"event {number}", now=number)
    events = journal.events(made.id)
    assert len(events) == 500
    assert events[-1] == (519, "event 519")


def test_an_expired_workspace_is_told_cheaply(tmp_path: Path) -> None:
    home = Home(str(tmp_path))
    assert expired_notice(home) is None
    with Journal(home) as journal:
        begin(journal, "never")
        assert expired_notice(home) is None
        begin(journal, "old", expires_at=5)
        assert "workspace old is past the ttl" in str(expired_notice(home))
        begin(journal, "older", expires_at=3)
        assert "workspaces older, old are past the ttl" in str(expired_notice(home))
    (tmp_path / "provision.db").write_bytes(b"not a database" * 100)
    assert expired_notice(home) is None


def test_what_is_committed_outlasts_a_power_cut(journal: Journal) -> None:
    # In WAL mode FULL (2) syncs the log at each commit, before it returns: sqlite.org/pragma.html.
    (synchronous,) = journal._db.execute("PRAGMA synchronous").fetchone()
    (mode,) = journal._db.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, mode) == (2, "wal")


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "provision.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match=r"provision\.db") as caught:
        Journal(Home(str(tmp_path)))
    assert "workspace adopt" in caught.value.hint


def test_a_full_disk_is_told_before_anything_is_ordered(journal: Journal) -> None:
    journal._db.execute("PRAGMA max_page_count = 1")
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateError, match="full") as caught:
        list(map(lambda number: begin(journal, f"w{number}"), range(2000)))  # noqa: C417
    assert "free some space" in caught.value.hint


def test_a_record_of_another_version_is_told(journal: Journal) -> None:
    made = begin(journal)
    journal._db.execute("UPDATE workspaces SET plan = '{}' WHERE id = ?", (made.id,))
    with pytest.raises(CodexctlError, match="does not parse"):
        journal.by_name("box")


@given(
    st.text(max_size=9),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
    st.none() | st.decimals(min_value=0, allow_nan=False, allow_infinity=False),
)
def test_any_plan_survives_the_journal(text: str, extra: dict[str, str], hourly: object) -> None:
    price = Price.per_hour(hourly) if isinstance(hourly, Decimal) else None
    plan = Plan(text, text, text, price, price, text or None, (text,), extra)
    assert Plan.from_json(plan.to_json()) == plan


@given(st.text(max_size=20), st.none() | st.integers(0, 10**11))
def test_tags_are_read_from_either_form(owner: str, expires_at: int | None) -> None:
    owner = "".join(c for c in owner if c in "0123456789abcdef")
    tags = Tags("a" * 32, owner, expires_at)
    assert Tags.parse(tags.pairs()) == tags
    assert Tags.parse_flat(tags.flat()) == tags


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=40)))
def test_any_tags_are_read_without_a_surprise(pairs: dict[str, str]) -> None:
    assert Tags.parse(pairs) is None or len(pairs["codexctl-id"]) == 32


def test_a_token_is_kept_private_and_forgotten(tmp_path: Path) -> None:
    store = HomeSecrets(Home(str(tmp_path)))
    assert store.get("acme") is None
    where = store.put("acme", Secret("s3cret"))
    assert os.stat(where).st_mode & 0o777 == 0o600
    assert store.get("acme") == Secret("s3cret")
    os.chmod(where, 0o644)
    with pytest.raises(StateError, match="can be read by others"):
        store.get("acme")
    os.chmod(where, 0o600)
    assert store.delete("acme")
    assert not store.delete("acme")
    with pytest.raises(UsageError):
        store.get("../x")


def test_nothing_secret_is_in_a_settings_record() -> None:
    assert "passphrase" in json.loads(Settings(passphrase=True).to_json())
    assert Settings.from_json(Settings(passphrase=True).to_json()).passphrase is True
