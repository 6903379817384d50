"""What was proved of rules beside what was seen of them: where they contradict each other, the analysis is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from kbuild.elf.findings import STAGE as INSPECT
from kbuild.elf.rules.counts import is_answer
from kbuild.outcome import Finding, Status, finding_id, verdict
from kbuild.transcript import Transcript

EXCLUDES = ("proved", "unreached")
"""Answers that say of every way that the rule is not broken on it."""


def answers_in(findings: Iterable[Finding]) -> dict[tuple[str, str], str]:
    """The answers that a run has, by rule and module."""
    return {
        (one.rule, one.module): one.answer
        for one in findings
        if is_answer(one) and one.rule is not None and one.module is not None and one.answer is not None
    }


def compare(transcript: Transcript, answers: Mapping[tuple[str, str], str]) -> Transcript:
    """The transcript with the answers beside what was observed, and a finding for each rule that was seen to break.

    Broken where it was proved that it can not be: ERROR, of this tool. Broken where nobody knew: FAIL. Where the
    answer is `violated` it counts there already.
    """
    if not transcript.observed:
        return transcript
    observed = [
        msgspec.structs.replace(one, answer=answers.get((one.rule, one.module), one.answer))
        for one in transcript.observed
    ]
    findings: list[Finding] = []
    for one in observed:
        about = f"{one.rule}: {one.module}"
        if one.seen != "broken" or one.answer == "violated":
            continue
        if one.answer in EXCLUDES:
            status, kind = Status.ERROR, "contradicted"
            message = (
                f"{about}: THE ANALYSIS IS WRONG: it says {one.answer}, and a trace shows otherwise: {one.why}; "
                f"please report this with the run's folder"
            )
        else:
            status, kind = Status.FAIL, "observed"
            message = (
                f"{about}: seen to break ({INSPECT} says {one.answer or 'nothing, for it was not asked'}): {one.why}"
            )
        findings.append(
            Finding(
                id=finding_id("load", kind, one.module, one.rule),
                status=status,
                message=message,
                rule=one.rule,
                module=one.module,
                host=transcript.host,
                order=transcript.order,
                reproduce=transcript.reproduce,
            )
        )
    return msgspec.structs.replace(
        transcript,
        observed=observed,
        findings=[*transcript.findings, *findings],
        status=verdict(findings, [transcript.status]),
        reason=transcript.reason or next((one.message for one in findings), None),
    )
