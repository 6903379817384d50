"""What is different between two trees of calls: takes the key `flow` of two inspections, gives data again."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Data = Mapping[str, Any]
Key = tuple[str, str]
"""A function and its module."""

MAX_COMPARED = 1 << 17
"""Pairs of calls of one function."""

_COMPARED = ("arguments", "section", "how", "candidate", "unresolved")


def flow_differences(before: Iterable[Data], after: Iterable[Data]) -> list[dict[str, Any]]:
    """The trees that differ, with nothing but calls that came, went or changed, and what leads there.

    Calls of one function are compared in their order. Where the same difference is met again it is `again`, and without
    what is below it.
    """
    old, new = ({(tree["module"], tree["entry"]): tree for tree in side} for side in (before, after))
    found: list[dict[str, Any]] = []
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        calls = _siblings(was["calls"] if was else (), now["calls"] if now else (), {})
        change = "came" if was is None else "went" if now is None else "same"
        if calls or change != "same":
            tree = now or was
            assert tree is not None
            shown = {"module": key[0], "entry": key[1], "function": tree["function"]}
            found.append({**shown, "change": change, "calls": calls})
    return found


def _siblings(old: Sequence[Data], new: Sequence[Data], seen: dict[str, None]) -> list[dict[str, Any]]:
    """Calls of one function, matched by what they call."""
    keys, others = ([*map(key_of, side)] for side in (old, new))
    found: list[dict[str, Any]] = []
    for what, first, last, start, end in edits(keys, others):
        if what == "equal":
            for was, now in zip(old[first:last], new[start:end], strict=True):
                found += _pair(was, now, seen)
        else:
            found += [_call(one, "went") for one in old[first:last]]
            found += [_call(one, "came") for one in new[start:end]]
    return found


def key_of(call: Data) -> Key:
    """What is called: calls of two sides with the same key are the same call."""
    return str(call["function"]), str(call["module"])


def compared(call: Data) -> dict[str, Any]:
    """What is held against the other side's, but for what is called and what that calls."""
    return {key: call[key] for key in _COMPARED}


def edits(a: Sequence[Key], b: Sequence[Key]) -> Iterator[tuple[str, int, int, int, int]]:
    """As `SequenceMatcher.get_opcodes()`, but not for hours: where thousands of calls are equal, all are others."""
    shorter = min(len(a), len(b))
    head = next((n for n in range(shorter) if a[n] != b[n]), shorter)
    tail = next((n for n in range(shorter - head) if a[-1 - n] != b[-1 - n]), shorter - head)
    one, other = a[head : len(a) - tail], b[head : len(b) - tail]
    yield "equal", 0, head, 0, head
    if len(one) * len(other) > MAX_COMPARED:
        yield "replace", head, head + len(one), head, head + len(other)
    else:
        matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
        for what, first, last, start, end in matcher.get_opcodes():
            yield what, head + first, head + last, head + start, head + end
    yield "equal", len(a) - tail, len(a), len(b) - tail, len(b)


def _pair(was: Data, now: Data, seen: dict[str, None]) -> list[dict[str, Any]]:
    if was == now:
        return []
    calls = _siblings(was["calls"], now["calls"], seen)
    before = {key: was[key] for key in _COMPARED if was[key] != now[key]}
    if not calls and not before:
        return []
    shown = {**_call(now, "changed" if before else "same"), "calls": calls}
    if before:
        shown["before"] = before
    content = json.dumps(shown, sort_keys=True)
    if content in seen:
        return [{**shown, "calls": [], "again": True}]
    seen[content] = None
    return [shown]


def _call(one: Data, change: str) -> dict[str, Any]:
    """Without places, which have offsets; of what came or went, how many calls it brought or took along."""
    shown = {key: one[key] for key in ("function", "module", *_COMPARED, "through")}
    return {"change": change, **shown, "below": _count(one), "calls": []}


def _count(one: Data) -> int:
    return len(one["calls"]) + sum(map(_count, one["calls"]))
