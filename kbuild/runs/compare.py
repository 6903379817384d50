"""What differs between two runs, and whether the later one is worse: takes two records and what they keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kbuild.outcome import Finding, Status, place_of, worst
from kbuild.record import Record, open_record
from kbuild.runs.objects import compare_objects

MANY = 5
"""Answers to rules that are missing, above which they are counted."""
JUDGED = (Status.FAIL, Status.PASS)
_STAGES = ("inspect", "release")
"""Whose own answer may be missing; of a load each order says so."""
_ANSWER = "inspect:rule:"
_OF_THE_MACHINE = ("host", "pid")

Worse = tuple[Status, str]
"""An outcome, and what has it, in one line."""


def compare_runs(before: str, after: str) -> dict[str, Any]:
    """What `inv compare --json` prints, for two runs as `read_record` finds them.

    Raises UserError where one of them is not there or cannot be read.
    """
    (was, old), (now, new) = open_record(before), open_record(after)
    return {**compare_records(old, new), **compare_objects((was, now), (old, new)), **_config(was, now)}


def compare_records(before: Record, after: Record) -> dict[str, Any]:
    """What two records alone tell. `status` is the worst of what got worse, PASS where nothing did."""
    findings, rules, cells = _findings(before, after), _rules(before, after), _cells(before, after)
    worse = [
        *_not_finished(after),
        *_missing_stages(before, after),
        *_worse_findings(findings),
        *_worse_rules(rules),
        *_worse_cells(cells),
    ]
    return {
        "before": _run(before),
        "after": _run(after),
        "status": worst([Status.PASS, *(status for status, _ in worse)]),
        "worse": [{"status": status, "what": what} for status, what in worse],
        "stages": _stages(before, after),
        "findings": [one for one in findings if one["change"] != "same"],
        "same_findings": sum(one["change"] == "same" for one in findings),
        "cells": [one for one in cells if one["before"] != one["after"]],
        "same_cells": sum(one["before"] == one["after"] for one in cells),
        "rules": [one for one in rules if one["before"] != one["after"]],
        "same_rules": sum(one["before"] == one["after"] for one in rules),
        "tools": _changes(_tools(before), _tools(after)),
        "profile": _changes(before.profile_files, after.profile_files),
    }


def changed_ids(compared: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Of what `compare_records` gave the ids of findings and answers to rules: those that blame the later run, and
    those that counted in the earlier one and are mended.

    What the machine failed at blames nobody.
    """
    both = [*compared["findings"], *compared["rules"]]
    blaming = {one["id"] for one in both if one["worse"] in (Status.FAIL, Status.ERROR)}
    return sorted(blaming), sorted(one["id"] for one in both if one["mended"])


def _run(record: Record) -> dict[str, Any]:
    return {
        "run": record.id,
        "started": record.started,
        "task": record.task,
        "verdict": record.verdict,
        "error": record.error,
        "tree": record.tree,
        "kernel": record.kernel,
        "flavour": record.flavour,
        "profile": record.profile,
    }


def _stages(before: Record, after: Record) -> list[dict[str, Any]]:
    old, new = ({one.name: one for one in record.stages} for record in (before, after))
    found = []
    for name in [*old, *(one for one in new if one not in old)]:
        was, now = old.get(name), new.get(name)
        if (was and was.status) != (now and now.status):
            reason = now.reason if now else None
            found.append({"name": name, "before": was and was.status, "after": now and now.status, "reason": reason})
    return found


def _missing_stages(before: Record, after: Record) -> Iterator[Worse]:
    for one in _stages(before, after):
        if one["name"] in _STAGES and one["before"] in JUDGED and one["after"] not in JUDGED:
            status = Status.ERROR if one["after"] == Status.ERROR else Status.MISS
            yield status, f"stage {one['name']}: {one['before']} → {one['after'] or 'not run'}"


# Findings, but for the answers to rules.


def _findings(before: Record, after: Record) -> list[dict[str, Any]]:
    """Each id once. Its state is the worst outcome that counts, else `known`, else its outcome.

    It gets worse on each host by itself: what one host showed before is new on another one.
    """
    old, new = _by_id(before.findings), _by_id(after.findings)
    found = []
    for name in [*new, *(one for one in old if one not in new)]:
        was, now = old.get(name, ()), new.get(name, ())
        shown = min(now or was, key=_rank)
        state = (_state(was), _state(now))
        hosts = dict.fromkeys(one.host for one in (*was, *now))
        sides = {host: (_state_on(host, was), _state_on(host, now)) for host in hosts}
        worse = {host: Status(new) for host, (old, new) in sides.items() if new and _counts(new) < _counts(old)}
        mended = any(_is_mended(host, *states, was, after) for host, states in sides.items())
        change = "new" if not was else "gone" if not now else "changed"
        if state[0] == state[1] and not worse and not mended:
            change = "same"
        if change == "gone" and not any(looked_for(one, after) for one in was):
            change = "not looked for"
        found.append(
            {
                "change": change,
                "id": name,
                "before": state[0],
                "after": state[1],
                "worse": worst(worse.values()) if worse else None,
                "worse_on": [host for host in worse if host],
                "mended": mended,
                "message": shown.message,
                "known": shown.known,
                "expired": shown.expired,
                "places": [{"host": one.host, "order": one.order, "step": one.step} for one in now or was if one.host],
                "reproduce": shown.reproduce,
            }
        )
    return found


def _by_id(findings: Iterable[Finding]) -> dict[str, Sequence[Finding]]:
    found: dict[str, Sequence[Finding]] = {}
    for one in findings:
        if not one.id.startswith(_ANSWER):
            found[one.id] = (*found.get(one.id, ()), one)
    return found


def _rank(finding: Finding) -> tuple[bool, int]:
    return finding.known is not None, [*Status].index(finding.status)


def _state(findings: Sequence[Finding]) -> str | None:
    if not findings:
        return None
    first = min(findings, key=_rank)
    return "known" if first.known is not None else str(first.status)


def _state_on(host: str | None, findings: Iterable[Finding]) -> str | None:
    return _state([one for one in findings if one.host == host])


def _is_mended(
    host: str | None, before: str | None, after: str | None, findings: Iterable[Finding], now: Record
) -> bool:
    """Whether what counted on a host counts no more, and could have been seen there."""
    if not _counting(before) or _counting(after):
        return False
    return after not in (None, Status.SKIP) or any(looked_for(one, now) for one in findings if one.host == host)


def looked_for(finding: Finding, record: Record) -> bool:
    """Whether a run that does not have a finding could have had it there."""
    if finding.id.startswith(_ANSWER):
        return any(one.id == finding.id and one.status in JUDGED for one in record.findings)
    if finding.host is not None and finding.order is not None:
        return any(
            (one.host, one.order) == (finding.host, finding.order) and one.status in JUDGED
            for one in record.transcripts
        )
    stage = finding.id.partition(":")[0]
    if stage == "build" and not record.artifacts:
        return False  # make stopped at something else
    return any(one.name == stage and one.status in JUDGED for one in record.stages)


def _worse_findings(findings: Iterable[Mapping[str, Any]]) -> Iterator[Worse]:
    for one in findings:
        if one["worse"] is not None:
            # Where it is no worse elsewhere, it is no news that it is there.
            where = f" on {', '.join(one['worse_on'])}" if one["before"] == one["after"] else ""
            yield one["worse"], f"{one['change']} finding {one['id']}{where}"


def _counting(state: str | None) -> bool:
    return state is not None and state != "known" and Status(state).counts


def _counts(state: str | None) -> int:
    """The less the worse; equal for all that do not count."""
    counting = [str(status) for status in Status if status.counts]
    return counting.index(state) if state in counting else len(counting)


# Answers to rules.


def _rules(before: Record, after: Record) -> list[dict[str, Any]]:
    old, new = ({one.id: one for one in record.findings if one.id.startswith(_ANSWER)} for record in (before, after))
    others = (after.rules or {}).get("other_kernels", ())
    found = []
    for name in [*new, *(one for one in old if one not in new)]:
        was, now = old.get(name), new.get(name)
        shown = now or was
        assert shown is not None
        found.append(
            {
                "id": name,
                "rule": shown.rule,
                "module": shown.module,
                "before": _answer(was),
                "after": _answer(now),
                "status": now.status if now else None,
                "status_before": was.status if was else None,
                "known": now.known if now else None,
                "known_before": was.known if was else None,
                "worse": _worse_rule(was, now),
                "mended": _mended_rule(was, now),
                "other_kernel": now is None and shown.rule in others,
                "message": shown.message,
                "witness": shown.witness,
            }
        )
    return found


def _answer(finding: Finding | None) -> str | None:
    """None: not asked."""
    if finding is None:
        return None
    return f"{finding.answer or 'skipped'}{', known' if finding.known is not None else ''}"


def _worse_rule(was: Finding | None, now: Finding | None) -> Status | None:
    """The outcome of an answer that counts and did not, or less."""
    if now is None or not _is_counted(now):
        return None
    before = _state([was]) if was else None
    return now.status if _counts(now.status) < _counts(before) else None


def _mended_rule(was: Finding | None, now: Finding | None) -> bool:
    answered = now is not None and now.status != Status.SKIP
    return was is not None and answered and _is_counted(was) and not _is_counted(now)


def _is_counted(finding: Finding | None) -> bool:
    return finding is not None and finding.counts


def _worse_rules(rules: Iterable[Mapping[str, Any]]) -> Iterator[Worse]:
    """Of answers that are missing there are often many, for one reason."""
    missing: list[str] = []
    for one in rules:
        name = f"rule {one['rule']}: {one['module']}: {one['before'] or 'not asked'} → {one['after'] or 'not asked'}"
        if one["worse"] is not None:
            yield one["worse"], name
        elif one["status_before"] == Status.PASS and one["status"] in (None, Status.SKIP) and not one["other_kernel"]:
            missing.append(name)
    if len(missing) > MANY:
        yield Status.MISS, f"{len(missing)} rules that were kept were not asked"
    else:
        yield from ((Status.MISS, name) for name in missing)


# Orders on hosts.


def _cells(before: Record, after: Record) -> list[dict[str, Any]]:
    old, new = ({(one.host, one.order): one for one in record.transcripts} for record in (before, after))
    judged = {(one.host, place_of(one.order)) for one in after.transcripts if one.status in JUDGED}
    found = []
    for host, order in [*old, *(key for key in new if key not in old)]:
        was, now = old.get((host, order)), new.get((host, order))
        states = {"before": was.status if was else None, "after": now.status if now else None}
        again = now.reproduce if now else None
        found.append(
            {
                "host": host,
                "order": order,
                **states,
                # A run by its number, of which this kernel has fewer.
                "renumbered": place_of(order) != order and (host, place_of(order)) in judged,
                "reason": now.reason if now else None,
                "reproduce": again,
            }
        )
    return found


def _worse_cells(cells: Iterable[Mapping[str, Any]]) -> Iterator[Worse]:
    """What was not judged before cannot get worse but by a FAIL; what was judged and is no more does not pass."""
    for one in cells:
        was, now = one["before"], one["after"]
        name = f"{one['host']}, {one['order']}: {was or 'not run'} → {now or 'not run'}"
        if now == Status.FAIL and was != Status.FAIL:
            yield Status.FAIL, name
        elif was in JUDGED and now is None and one["renumbered"]:
            continue
        elif was in JUDGED and now not in JUDGED:
            yield Status.ERROR if now == Status.ERROR else Status.MISS, name


def _not_finished(after: Record) -> Iterator[Worse]:
    if after.verdict is None:
        yield Status.ERROR, f"{after.id} did not come to its end"


# What it was made with.


def _tools(record: Record) -> dict[str, str]:
    tools = {name: said for name, said in record.tools.items() if name not in _OF_THE_MACHINE}
    agent = {"agent": record.agent} if record.agent else {}
    return {**tools, **agent, **{f"host {name}": said for name, said in record.hosts.items()}}


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "before": before.get(name), "after": after.get(name)}
        for name in [*before, *(one for one in after if one not in before)]
        if before.get(name) != after.get(name)
    ]


def _config(before: Path, after: Path) -> dict[str, Any]:
    """Symbols that have another value; None where one of the runs keeps no configuration."""
    old, new = _symbols(before / "config"), _symbols(after / "config")
    return {"config": None if old is None or new is None else _changes(old, new)}


def _symbols(path: Path) -> dict[str, str] | None:
    """Symbol to value, without those that are off: some files name them and some do not."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition("=") for line in lines if line.startswith("CONFIG_"))
    return {name.removeprefix("CONFIG_"): value for name, _, value in pairs}
