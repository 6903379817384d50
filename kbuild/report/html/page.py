"""Puts the page together: what each section shows comes from the other files here, how it looks from the templates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbuild.outcome import Status
from kbuild.report import faults, gist
from kbuild.report.html import flow, orders, rules, sizes
from kbuild.report.html.findings import told
from kbuild.report.html.frame import read_data, render_page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbuild.outcome import Finding
    from kbuild.record import Record

MAX_FINDINGS = 150
"""That count, findings that say the same being one."""
MAX_KNOWN = 500
MAX_SITES = 2000


def render_html(record: Record, folder: Path, against: tuple[Path, Record] | None = None) -> str:
    """The page. `folder`: of the run; what is not there, the page says or leaves out.

    `against`: another run, folder and record; what has another size in it is shown.
    """
    code = read_data(folder / "code.json") or {}
    before = read_data(against[0] / "code.json") if against is not None else None
    verdict, status = gist.verdict_of(record)
    groups = gist.groups(gist.counting(record))
    return render_page(
        "page.html",
        record=record,
        verdict=verdict,
        status=status,
        asked=gist.asked(record) or record.task,
        identity=gist.identity(record),
        gist=_gist(record),
        facts=_facts(record),
        hosts=gist.hosts(record),
        matrix=orders.matrix(record),
        findings=[told(group) for group in groups[:MAX_FINDINGS]],
        left=max(len(groups) - MAX_FINDINGS, 0),
        untold=gist.alike(gist.untold(record)),
        known=_known(record)[:MAX_KNOWN],
        skipped=gist.alike(one for one in record.transcripts if one.status == Status.SKIP)[:MAX_KNOWN],
        unasked=gist.skipped_rules(record),
        informing=[one for one in record.findings if one.known is None and one.status == Status.DONE],
        rules=rules.table(record),
        timelines=orders.timelines(record, folder),
        sites=faults.sites(record.transcripts)[:MAX_SITES],
        flow=flow.entries(code.get("flow") or [], record),
        unseen=_unseen(record, code),
        sizes=sizes.modules(code.get("modules") or [], (before or {}).get("modules") or []),
        against=against[1] if against is not None else None,
        held=bool(before and before.get("modules")),
        reproduce=orders.commands(record),
        rebuild=folder / "reproduce.sh" if (folder / "reproduce.sh").is_file() else None,
        folder=folder,
    )


def _unseen(record: Record, code: Mapping[str, Any]) -> str | None:
    """Why there is nothing of the modules' code, where there are modules."""
    if not any(".ko" in name for name in record.artifacts):
        return None
    return str(code.get("why") or "") or (None if code else "the modules were not looked at")


def _gist(record: Record) -> list[str]:
    """All that was judged, in a line."""
    open_ = len(gist.groups(gist.counting(record))) + len(gist.alike(gist.untold(record)))
    told = [f"{open_} {'finding counts' if open_ == 1 else 'findings count'}"] if open_ else []
    told += [stage.summary for stage in record.stages if stage.name == "load" and stage.summary]
    if record.rules is not None:
        answers = ", ".join(f"{count} {word}" for word, count in record.rules["answers"].items())
        told.append(f"{record.rules['asked']} rules asked" + (f": {answers}" if answers else ""))
    return told


def _facts(record: Record) -> list[tuple[str, str]]:
    """What was judged, on what and with what."""
    profile = Path(record.profile).stem if record.profile else ""
    machines = {host: record.machines.get(host) for host in gist.hosts(record)}
    told = [
        ("source", record.tree.get("identity", "")),
        ("commit", record.tree.get("commit", "")),
        ("patches", record.tree.get("patches", "")),
        ("kernel", record.kernel or ""),
        ("profile", profile + (f", flavour {record.flavour}" if record.flavour else "")),
    ]
    for host, facts in machines.items():
        told.append((host, gist.machine(record.hosts.get(host, "not there"), facts)))
    told += [(name, version) for name, version in record.tools.items() if name not in ("host", "pid")]
    return [(name, said) for name, said in told if said]


def _known(record: Record) -> list[tuple[Finding, int]]:
    """Each known finding once, with how often it came."""
    found: dict[str, list[Finding]] = {}
    for one in record.findings:
        if one.known is not None:
            found.setdefault(one.id, []).append(one)
    return [(each[0], len(each)) for each in found.values()]
