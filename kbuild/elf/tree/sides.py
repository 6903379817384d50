"""Two trees of calls beside each other: takes the key `flow` of two inspections, gives data again.

Other than a difference, this keeps what stands around it: a reader sees what comes before and after a call that moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kbuild.elf.tree.differences import compared, edits, key_of

Data = Mapping[str, Any]

NEAR = 1
"""Calls that are the same on both sides and are shown before and after one that matters; the others are counted."""


def flow_beside(before: Sequence[Data], after: Sequence[Data], rules: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Each entry of one side at least: `module`, `entry`, `change`, `before` and `after` (the function, or null),
    `differs` and `calls`.

    A call has `change` (`same`, `changed`, `came`, `went`), `before` and `after` as in `flow`, but without calls,
    `calls`, and `moved` where it went from one function and came in another one: that function's name. In place of
    calls that are the same on both sides, and lead to nothing that matters, there is `{"alike": count}`. Events matter
    of `rules`, and of each rule that has one at a call that differs; those of others are left out.
    """
    touched = {*rules, *_touched(_beside(before, after, frozenset()))}
    found = _beside(before, after, frozenset(touched))
    for tree in found:
        _name_moved(tree["calls"], (tree["before"] or tree["after"])["function"])
        _choose_events(tree["calls"], touched)
    return found


def _beside(before: Sequence[Data], after: Sequence[Data], rules: frozenset[str]) -> list[dict[str, Any]]:
    old, new = ({(tree["module"], tree["entry"]): tree for tree in side} for side in (before, after))
    found = []
    for key in sorted({*old, *new}, key=lambda one: (one[1] != "init", one)):
        was, now = old.get(key), new.get(key)
        calls = _siblings(was["calls"] if was else (), now["calls"] if now else (), rules)
        change = "came" if was is None else "went" if now is None else "same"
        sides = {"before": was and _shown(was), "after": now and _shown(now)}
        differs = change != "same" or any(one.get("differs") for one in calls)
        names = {"module": key[0], "entry": key[1], "change": change}
        found.append({**names, **sides, "differs": differs, "calls": calls})
    return found


def _siblings(old: Sequence[Data], new: Sequence[Data], rules: frozenset[str]) -> list[dict[str, Any]]:
    """Calls of one function, matched by what they call, with what does not matter counted."""
    every: list[dict[str, Any]] = []
    for what, first, last, start, end in edits([*map(key_of, old)], [*map(key_of, new)]):
        if what == "equal":
            every += [_pair(*both, rules) for both in zip(old[first:last], new[start:end], strict=True)]
        else:
            every += [_alone(one, "went") for one in old[first:last]]
            every += [_alone(one, "came") for one in new[start:end]]
    return [*_folded(every)]


def _pair(was: Data, now: Data, rules: frozenset[str]) -> dict[str, Any]:
    # What is equal needs no look at each call in it, but for the events of rules.
    look = was["calls"] != now["calls"] or _has_events(now["calls"], rules)
    calls = _siblings(was["calls"], now["calls"], rules) if look else []
    changed = compared(was) != compared(now)
    below = any(one.get("differs") for one in calls)
    events = any(one["rule"] in rules for one in (*was["events"], *now["events"]))
    return {
        "change": "changed" if changed else "same",
        "before": _shown(was),
        "after": _shown(now),
        "differs": changed or below,
        "matters": changed or events or any(one.get("matters") for one in calls),
        "calls": calls,
    }


def _alone(one: Data, change: str) -> dict[str, Any]:
    """A call of one side, with all that it calls."""
    sides = {"before": _shown(one) if change == "went" else None, "after": _shown(one) if change == "came" else None}
    calls = [_alone(each, change) for each in one["calls"]]
    return {"change": change, **sides, "differs": True, "matters": True, "calls": calls}


def _has_events(calls: Sequence[Data], rules: frozenset[str]) -> bool:
    return any(
        any(event["rule"] in rules for event in one["events"]) or _has_events(one["calls"], rules) for one in calls
    )


def _touched(trees: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The rules that have an event at a call that differs."""
    for one in trees:
        if "alike" in one:
            continue
        if one["change"] != "same":
            yield from (event["rule"] for side in ("before", "after") for event in (one[side] or {}).get("events", ()))
        yield from _touched(one["calls"])


def _choose_events(calls: Iterable[dict[str, Any]], rules: set[str]) -> None:
    for one in calls:
        if "alike" not in one:
            for side in filter(None, (one["before"], one["after"])):
                side["events"] = [event for event in side["events"] if event["rule"] in rules]
            _choose_events(one["calls"], rules)


def _folded(every: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Without what is far from all that matters. Where nothing matters there is nothing to be shown."""
    places = [number for number, one in enumerate(every) if one["matters"]]
    near = {number + step for number in places for step in range(-NEAR, NEAR + 1)}
    alike = 0
    for number, one in enumerate(every):
        if number not in near:
            alike += 1
            continue
        if alike:
            yield {"alike": alike}
        alike = 0
        yield one
    if alike:
        yield {"alike": alike}


def _shown(one: Data) -> dict[str, Any]:
    return {key: value for key, value in one.items() if key not in ("calls", "counts", "cut")}


def _name_moved(calls: Sequence[dict[str, Any]], function: str) -> None:
    """What went from one function and came in another one is told at both, where that is one function alone."""
    parents: dict[str, dict[str, set[str]]] = {"went": {}, "came": {}}
    every = [*_lone(calls, function)]
    for key, parent, one in every:
        parents[one["change"]].setdefault(key, set()).add(parent)
    for key, parent, one in every:
        others = parents["came" if one["change"] == "went" else "went"].get(key, set()) - {parent}
        if len(others) == 1:
            one["moved"] = min(others)


def _lone(calls: Sequence[dict[str, Any]], parent: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Calls of one side: what is called with what, from which function."""
    for one in calls:
        if "alike" in one:
            continue
        shown = one["after"] or one["before"]
        if one["change"] in ("came", "went") and shown["unresolved"] is None:
            yield json.dumps([shown["function"], shown["module"], shown["arguments"]]), parent, one
        yield from _lone(one["calls"], str(shown["function"]))
