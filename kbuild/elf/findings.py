"""A finding of this stage, with an id that is the same in every run."""

from __future__ import annotations

from collections.abc import Sequence

from kbuild.outcome import Finding, Status, finding_id

STAGE = "inspect"
MAX_EVIDENCE = 40
"""Lines of evidence in one finding; how many more there are is said."""


def new_finding(
    rule: str, status: Status, module: str | None, cause: str, message: str, lines: Sequence[str]
) -> Finding:
    """A finding about a module, or with None about the set; `lines` show it."""
    more = len(lines) - MAX_EVIDENCE
    evidence = (*lines[:MAX_EVIDENCE], *([f"… and {more} more"] if more > 0 else []))
    return Finding(
        id=finding_id(STAGE, rule, module or "set", cause),
        status=status,
        rule=rule,
        module=module,
        message=message,
        evidence=evidence,
    )
