"""Names of paired hosts for completion: reads one column, imports nothing heavy, never fails."""

from __future__ import annotations

import os
import sqlite3

from codexctl.paths import Home


def host_names(home: Home) -> list[str]:
    """The names under which hosts are known here, sorted; empty where there is no readable list."""
    if not os.path.exists(home.device_db):
        return []
    try:
        db = sqlite3.connect(f"file:{home.device_db}?mode=ro", uri=True, timeout=0.2)
        try:
            return [str(row[0]) for row in db.execute("SELECT name FROM hosts ORDER BY name")]
        finally:
            db.close()
    except sqlite3.Error:
        # Completion says nothing rather than something wrong in the middle of a command line.
        return []
