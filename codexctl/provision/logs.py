"""What can be known of a workspace: its journal, the logs on its machine, its console."""

from __future__ import annotations

from datetime import UTC, datetime

from codexctl.errors import CodexctlError
from codexctl.provision.journal import Workspace
from codexctl.provision.pipeline import target_of
from codexctl.provision.remote import Link
from codexctl.provision.service import Service

MACHINE_LOGS = """
tail_of() { [ -r "$1" ] && { echo "-- $1"; tail -c 6000 "$1"; }; return 0; }
tail_of /run/cloud-init/result.json
for log in /var/lib/codexctl/failed /var/lib/codexctl/*.log; do tail_of "$log"; done
if [ -r /var/log/cloud-init-output.log ]; then tail_of /var/log/cloud-init-output.log
elif sudo -n true 2>/dev/null; then
  echo "-- /var/log/cloud-init-output.log"; sudo -n tail -c 6000 /var/log/cloud-init-output.log
fi
exit 0
"""


def gather(service: Service, workspace: Workspace) -> dict[str, str]:
    """Titles and texts; what cannot be had is told in its place."""
    lines = [
        f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z {what}"
        for at, what in service.journal.events(workspace.id)
    ]
    record = {"journal": "\n".join(lines), "machine": "", "console": ""}
    if not workspace.stage_has_machine:
        return record
    try:
        with Link(target_of(service.home, workspace)) as link:
            record["machine"] = link.run(MACHINE_LOGS).text
    except CodexctlError as error:
        record["machine"] = f"(not reached: {error.message})"
        try:
            record["console"] = service.account_of(workspace).console(workspace.ref) or ""
        except CodexctlError as refused:
            record["console"] = f"(not told: {refused.message})"
    return record
