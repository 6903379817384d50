"""A run as data, in the form that the design promises to other people's scripts."""

from __future__ import annotations

from typing import Any

import msgspec

from kbuild.record import Record, runs_home
from kbuild.transcript import LogLine, StepResult, Transcript


def summary(record: Record) -> dict[str, Any]:
    """`{"verdict", "findings", "transcripts": [{"host", "order", "status", "steps": […]}], …}`."""
    return {
        "run": record.id,
        "folder": str(runs_home() / record.id),
        "verdict": record.verdict,
        "error": record.error,
        "tree": record.tree,
        "kernel": record.kernel,
        "artifacts": record.artifacts,
        "profile_files": record.profile_files,
        "stages": [msgspec.structs.asdict(stage) for stage in record.stages],
        "rules": record.rules,
        "release": record.release,
        "findings": [msgspec.structs.asdict(finding) for finding in record.findings],
        "known_not_seen": [msgspec.structs.asdict(known) for known in record.known_not_seen],
        "transcripts": [_transcript(one) for one in record.transcripts],
    }


def _transcript(transcript: Transcript) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.structs.asdict(transcript)
    data.pop("findings")  # they are in the list of all findings, each with host and order
    data["steps"] = [_step(step) for step in transcript.steps]
    return data


def _step(step: StepResult) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.structs.asdict(step)
    data["log"] = [_line(line) for line in step.log]
    return data


def _line(line: LogLine) -> dict[str, Any]:
    return dict(msgspec.structs.asdict(line))
