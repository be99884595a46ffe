"""Is a workspace past its ttl? Asked by every command at its start: nothing heavy is imported."""

from __future__ import annotations

import os

from codexctl.paths import Home

FILE = "provision.db"


def journal_path(home: Home) -> str:
    return home.join(FILE)


def expired_notice(home: Home) -> str | None:
    """The first line of every command while a workspace is past its ttl; None otherwise.

    Costs one stat where nothing was ever provisioned, and never fails a command.
    """
    path = journal_path(home)
    if not os.path.exists(path):
        return None
    return _expired_names(path)


def _expired_names(path: str) -> str | None:
    import sqlite3
    import time

    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)
        try:
            rows = db.execute(
                "SELECT name FROM workspaces WHERE ended_at IS NULL AND expires_at <= ?"
                " ORDER BY expires_at LIMIT 6",
                (int(time.time()),),
            ).fetchall()
        finally:
            db.close()
    except sqlite3.Error:
        return None
    if not rows:
        return None
    names = ", ".join(row[0] for row in rows[:5]) + (" and more" if len(rows) > 5 else "")
    one = len(rows) == 1
    what = f"workspace {names} is" if one else f"workspaces {names} are"
    todo = f"destroy {rows[0][0]}" if one else "reap"
    return f"{what} past the ttl and may bill: codexctl workspace {todo}, or extend"
