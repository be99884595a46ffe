"""The units by which a machine ends itself, as cloud-init writes them, under a real systemd."""

from __future__ import annotations

import time
from pathlib import Path

from tests.provision.test_cloudinit import rendered
from tests.support.systemd import user_manager

DEADLINE_S = 30.0


def until_exists(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not come"
        time.sleep(0.05)


def test_a_machine_shuts_down_when_its_moved_end_has_come(tmp_path: Path) -> None:
    data = rendered(tmp_path, close_metadata=True, ends_itself=True, expires_at=9_999_999_999)
    units = tmp_path / "config" / "systemd" / "user"
    units.mkdir(parents=True)
    state, looked, ended = (tmp_path / name for name in ("state", "looked", "ended"))
    state.mkdir()
    for file in data["write_files"]:  # type: ignore[attr-defined]
        path, text = Path(file["path"]), file["content"].replace("/var/lib/codexctl", str(state))
        if path.name in ("end", "expires_at"):
            # The machine itself must stay; that it looked is seen as well.
            text = text.replace("exec shutdown -h now", f"touch {ended}")
            (state / path.name).write_text(f"{text}touch {looked}\n" if "#!" in text else text)
        elif path.name.startswith("codexctl-end."):
            # A minute, and up to another by systemd's own accuracy, is too long for a test.
            text = text.replace("[Timer]", "[Timer]\nAccuracySec=100ms").replace("=60", "=1")
            (units / path.name).write_text(text)
    (state / "end").chmod(0o755)
    with user_manager(tmp_path) as manager:
        manager.systemctl("enable", "--now", "codexctl-end.timer")
        for _ in range(2):
            until_exists(looked)
            looked.unlink()
        assert not ended.exists()
        (state / "expires_at").write_text("99\n")
        until_exists(ended)
