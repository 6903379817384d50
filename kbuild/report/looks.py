"""What each step changed of the host's state, for orders after whose steps it was looked at."""

from __future__ import annotations

import sys
from typing import IO

from kbuild.errors import UserError
from kbuild.record import Record
from kbuild.report.terminal import console_for, plain


def render_looks(record: Record, stream: IO[str] | None = None) -> None:
    """Print what each look of a run saw. Raises UserError where there was none."""
    console = console_for(stream or sys.stdout)
    some = False
    for transcript in record.transcripts:
        for step in transcript.steps:
            if step.seen is None:
                continue
            some = True
            what = " ".join(part for part in (step.action, step.module or step.detail.get("what")) if part)
            changed = f"{len(step.seen)} changes" if step.seen else "nothing changed"
            plain(console, f"\n{transcript.host}, {transcript.order}, step {step.number}: {what}: {changed}")
            for line in step.seen:
                plain(console, f"  {line}")
    if not some:
        raise UserError(f"{record.id}: no step was looked at: inv load --look does, and an order with look = true")
