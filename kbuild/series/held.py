"""What the entries of a series have said so far, as one record: what the next one is held against."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kbuild.elf.rules.counts import is_answer
from kbuild.outcome import Finding, Status, place_of
from kbuild.record import Record

SAID = (Status.PASS, Status.FAIL, Status.ERROR, Status.DONE)
"""Of a stage, or of an order: an answer, be it that nothing could be told of the kernel."""
Key = tuple[str, ...]

NOTHING = Record(id="none", task="gate", command="", started="")
"""Before the first entry."""


def bring_up_to_date(held: Record, new: Record) -> Record:
    """What was said last: by `new` where it says something, else as it was `held`.

    So an entry that does not build, or whose machine failed, hides from the next one nothing of what was judged before
    it: of each stage, each order on a host and each rule the last answer counts.
    """
    stages = {one.name: one for one in held.stages} | {one.name: one for one in new.stages if one.status in SAID}
    silent = {(one.host, place_of(one.order)) for one in new.transcripts if one.status not in SAID}
    places = {(one.host, place_of(one.order)) for one in new.transcripts} - silent
    keys = {
        *(("stage", one.name) for one in new.stages if one.status in SAID),
        *(("place", *place) for place in places),
        *(_key(one) for one in new.findings if is_answer(one) and one.status not in (Status.SKIP, Status.MISS)),
    }
    return msgspec.structs.replace(
        new,
        stages=[*stages.values()],
        findings=[*_choose(held.findings, keys, False), *_choose(new.findings, keys, True)],
        transcripts=[
            *(one for one in held.transcripts if (one.host, place_of(one.order)) not in places),
            *(one for one in new.transcripts if (one.host, place_of(one.order)) in places),
        ],
        rules=new.rules or held.rules,
        sizes=new.sizes or held.sizes,
    )


def _choose(findings: Iterable[Finding], keys: set[Key], within: bool) -> Iterable[Finding]:
    return (one for one in findings if (_key(one) in keys) == within)


def _key(finding: Finding) -> Key:
    """What has to say something anew, for the finding to be as it is now."""
    if is_answer(finding):
        return "rule", finding.id
    if finding.host and finding.order:
        return "place", finding.host, place_of(finding.order)
    return "stage", finding.id.partition(":")[0]
