"""Findings that say the same, as a page shows them: the first with its evidence, and where the others are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kbuild.report import clean, gist
from kbuild.report.html.frame import MAX_EVIDENCE

if TYPE_CHECKING:
    from kbuild.outcome import Finding

MAX_SHOWN = 24
"""Lines of evidence that are seen without unfolding; registers are not among them."""
MAX_PLACES = 12


def told(group: list[Finding]) -> dict[str, Any]:
    """A group of them, for the macro `finding`."""
    one, places = group[0], [gist.place(other) for other in group[1:]]
    whole = [*clean.lines(one.witness or one.evidence, MAX_EVIDENCE)]
    shown = [*clean.lines(one.witness or gist.telling(one.evidence), MAX_SHOWN)]
    return {
        "one": one,
        "gist": shown,
        "whole": whole if len(whole) > len(shown) else [],
        "also": places[:MAX_PLACES],
        "more": max(len(places) - MAX_PLACES, 0),
    }
