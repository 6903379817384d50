"""A baseline: a record that fits into a repository, without evidence and without anything of this machine."""

from __future__ import annotations

from pathlib import Path

import msgspec

from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, to_json
from kbuild.record import Record, Stage, read_record
from kbuild.transcript import Transcript

_OF_THE_MACHINE = ("source",)
_TOOLS_OF_THE_MACHINE = ("host", "pid")


def baseline_of(run: str) -> bytes:
    """The file for a run. Raises UserError for one that did not come to its end, or that loaded nothing."""
    record = read_record(run)
    if record.verdict in (None, Status.MISS) or not record.transcripts:
        whole = "is MISS: not all of it was judged" if record.verdict else "did not come to its end"
        what = whole if record.verdict in (None, Status.MISS) else "loaded nothing"
        raise UserError(f"{record.id}: {what}: it is no baseline; take a run of inv gate")
    return msgspec.json.format(to_json(abridge(record)), indent=1) + b"\n"


def abridge(record: Record) -> Record:
    """What tells later runs apart from this one, in an order that does not depend on which host was faster."""
    return msgspec.structs.replace(
        record,
        command="",
        profile=Path(record.profile).name if record.profile else None,
        tree={key: value for key, value in record.tree.items() if key not in _OF_THE_MACHINE},
        tools={key: value for key, value in record.tools.items() if key not in _TOOLS_OF_THE_MACHINE},
        stages=[Stage(one.name, one.status) for one in record.stages],
        findings=[
            _finding(one) for one in sorted(record.findings, key=lambda one: (one.id, one.host or "", one.order or ""))
        ],
        transcripts=[
            Transcript(host=one.host, order=one.order, status=one.status)
            for one in sorted(record.transcripts, key=lambda one: (one.host, one.order))
        ],
        known_not_seen=[],
        release=None,
        abridged=True,
    )


def _finding(one: Finding) -> Finding:
    return Finding(
        id=one.id,
        status=one.status,
        # Of a rule that is kept the id says enough.
        message="" if one.status == Status.PASS else one.message,
        module=one.module,
        rule=one.rule,
        answer=one.answer,
        host=one.host,
        order=one.order,
        known=one.known,
    )
