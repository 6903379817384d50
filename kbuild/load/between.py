"""What comes when an order is over, and the next one in its guest has not begun: it is the first one's doing."""

from __future__ import annotations

import dataclasses

import msgspec

from kbuild.dmesg.classify import classify
from kbuild.hosts.spec import HostSpec, cpus_of
from kbuild.load.evidence import findings_of, log_lines, records_of, without_answer
from kbuild.load.ledger import MAX_EVIDENCE, missing, told
from kbuild.load.protocol import Result
from kbuild.load.request import LoadRequest
from kbuild.load.session import Reply
from kbuild.outcome import Finding, Status, finding_id, verdict
from kbuild.transcript import Transcript, bounded


def with_rest(transcript: Transcript, reply: Reply, request: LoadRequest, spec: HostSpec) -> Transcript:
    """The transcript of the order before, with what speaks against the kernel in what came since; itself: nothing does.

    `reply` is that of the command between the two. That the host failed, or nothing came, is no order's doing.
    """
    records = records_of(dataclasses.replace(reply, log=[*reply.earlier, *reply.log]))
    matches = classify(records, request.signatures, request.release)
    last = transcript.steps[-1] if transcript.steps else None
    subject = (last.module or last.action) if last else transcript.order
    place = f"{transcript.order}/after"
    findings = [*findings_of(matches, records, subject, (), "after the order", reply.kept_seconds, cpus_of(spec))]
    findings += missing(reply, "after the order", subject, place)
    if not isinstance(reply.answer, Result):
        status, what = without_answer(reply, matches)
        if status == Status.FAIL and not any(one.status == status for one in findings):
            evidence = tuple(record.text for record in records if record.facility == 0)[-MAX_EVIDENCE:]
            cause = finding_id("load", "no-answer", subject, place)
            findings.append(Finding(id=cause, status=status, message=f"after the order: {what}", evidence=evidence))
    counting = [one for one in findings if one.status.counts]
    if not counting:
        return transcript
    placed = [
        msgspec.structs.replace(
            one,
            host=transcript.host,
            order=transcript.order,
            step=last.number if last else None,
            reproduce=transcript.reproduce,
        )
        for one in told(findings, subject, place)
    ]
    steps = [*transcript.steps]
    if last is not None:
        steps[-1] = msgspec.structs.replace(last, log=[*last.log, *bounded(log_lines(records))])
    return msgspec.structs.replace(
        transcript,
        steps=steps,
        findings=[*transcript.findings, *placed],
        status=verdict(counting, [transcript.status]),
        reason=transcript.reason or counting[0].message,
    )
