"""The release policy: what a gate asks besides, so that a kernel may go out. Takes records, gives findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from kbuild.errors import UserError
from kbuild.outcome import RUN_OF, Finding, Status, finding_id, place_of
from kbuild.profile import Profile, Release
from kbuild.record import Record, read_record
from kbuild.runs.compare import JUDGED, compare_records

STAGE = "release"
Place = tuple[str, str | None, str | None]
"""A finding's id, host, and order, without the number of its run."""


def read_policy(profile: Profile, baseline: str | None) -> Policy | None:
    """The policy of a profile, or of `--baseline` alone; None: neither asks for one.

    `baseline` names a run or a file, in place of the profile's. Raises UserError where it is not there, or cannot be
    used.
    """
    release = profile.settings.release
    if release is None and baseline is None:
        return None
    release = release or Release(owners=False)
    name = baseline or (str(profile.path.parent / release.baseline) if release.baseline else None)
    if name is None:
        if release.growth:
            raise UserError(f"{profile.path}: release.growth needs release.baseline or --baseline to compare with")
        return Policy(release)
    record = read_record(name)
    if record.verdict is None:
        raise UserError(f"{name}: did not come to its end: it is no baseline")
    if release.growth and not record.sizes:
        raise UserError(f"{name}: has no sizes of modules, which release.growth compares with: gate that kernel anew")
    return Policy(release, record, name)


@dataclass(frozen=True)
class Policy:
    """What is asked, and the baseline with its name."""

    release: Release
    baseline: Record | None = None
    name: str | None = None

    def mark(self, finding: Finding) -> Finding:
        """The finding, as known where the baseline has it at the same place and no less grave.

        Not so what was declared as known until a day that is past, nor what the machine failed at.
        """
        if self.baseline is None or finding.known is not None or finding.expired is not None:
            return finding
        if finding.status not in (Status.FAIL, Status.ERROR):
            return finding
        worst = self._covered.get(_place(finding))
        if worst is None or [*Status].index(finding.status) < [*Status].index(worst):
            return finding
        return msgspec.structs.replace(finding, known=self._why)

    @cached_property
    def _why(self) -> str:
        """The reason with which what the baseline has is marked."""
        assert self.baseline is not None
        kernel = f" of {self.baseline.kernel}" if self.baseline.kernel else ""
        return f"in the baseline, run {self.baseline.id}{kernel}"

    @cached_property
    def _covered(self) -> dict[Place, Status]:
        """Of each place the gravest that counted."""
        found: dict[Place, Status] = {}
        for one in self.baseline.findings if self.baseline else ():
            if one.counts:
                key = _place(one)
                found[key] = min(found.get(key, one.status), one.status, key=[*Status].index)
        return found

    def judge(self, record: Record) -> tuple[list[Finding], dict[str, Any]]:
        """What is missing or too large; and the policy's part of the verdict as data."""
        required, growth = [*self._required(record)], [*self._growth(record)]
        told = self.baseline and {
            "run": self.baseline.id,
            "name": self.name,
            "kernel": self.baseline.kernel,
            "identity": self.baseline.tree.get("identity"),
        }
        findings = [*self._not_judged(record, required), *_grown(growth)]
        return findings, {"baseline": told, "required": required, "growth": growth}

    def counted(self, findings: Iterable[Finding]) -> dict[str, list[str]]:
        """Ids: of what counts, of what the baseline has, of what is declared as known, and of what was until a day."""
        counting = [one for one in findings if one.status.counts]
        covered = [one for one in counting if self.baseline is not None and one.known == self._why]
        return {
            "counting": _ids(one for one in counting if one.known is None),
            "in_baseline": _ids(covered),
            "known": _ids(one for one in counting if one.known is not None and one not in covered),
            "expired": _ids(one for one in counting if one.known is None and one.expired is not None),
        }

    @staticmethod
    def told(data: dict[str, Any]) -> str:
        """In one line."""
        judged = sum(one["judged"] for one in data["required"])
        parts = [f"{judged} of {len(data['required'])} required judged"] if data["required"] else []
        parts += [f"{len(data['counting']) or 'nothing'} {'count' if len(data['counting']) > 1 else 'counts'}"]
        parts += [f"{len(data[key])} {word}" for key, word in _WORDS.items() if data[key]]
        return ", ".join(parts)

    def _required(self, record: Record) -> Iterator[dict[str, Any]]:
        """An order with several runs is judged where each of them is."""
        for one in self.release.require:
            for order in one.orders:
                runs = [
                    cell.status
                    for cell in record.transcripts
                    if cell.host == one.host and order in (cell.order, cell.order.partition(RUN_OF)[0])
                ]
                # An ERROR counts by itself, as what it is.
                judged = bool(runs) and all(status in (*JUDGED, Status.ERROR) for status in runs)
                status = next((status for status in runs if status not in JUDGED), runs[0] if runs else None)
                yield {"host": one.host, "order": order, "status": status, "judged": judged}

    def _not_judged(self, record: Record, required: Iterable[dict[str, Any]]) -> Iterator[Finding]:
        missing = {(one["host"], one["order"]): one["status"] for one in required if not one["judged"]}
        for (host, order), status in missing.items():
            yield _missing(host, order, status, "it is required")
        if self.baseline is None:
            return
        compared = compare_records(self.baseline, record)
        for one in compared["cells"]:
            if one["after"] is None and one["renumbered"]:
                continue
            told = {(one["host"], one["order"]), (one["host"], one["order"].partition(RUN_OF)[0])} & missing.keys()
            if one["before"] in JUDGED and one["after"] in (None, Status.SKIP, Status.MISS) and not told:
                yield _missing(one["host"], one["order"], one["after"], "the baseline judged it")
        rules: dict[str, list[str]] = {}
        for one in compared["rules"]:
            asked = one["status"] not in (None, Status.SKIP) or one["other_kernel"]
            if one["status_before"] == Status.PASS and not asked:
                rules.setdefault(str(one["module"]), []).append(str(one["rule"]))
        for module, names in rules.items():
            count = f"{len(names)} rules were" if len(names) > 1 else f"{names[0]} was"
            yield Finding(
                id=finding_id(STAGE, "not-asked", module, "rules"),
                status=Status.MISS,
                message=f"{module}: {count} not answered: the baseline kept {'them' if len(names) > 1 else 'it'}",
                evidence=tuple(sorted(names)),
                module=module,
            )

    def _growth(self, record: Record) -> Iterator[dict[str, Any]]:
        """Sizes in bytes; `after` is None where there is no such module."""
        before = self.baseline.sizes if self.baseline else {}
        for one in self.release.growth:
            for module in [one.module] if one.module else record.sizes:
                sides = {
                    "before": _size(before.get(module), one.of) or 0,
                    "after": _size(record.sizes.get(module), one.of),
                }
                yield {"module": module, "of": one.of, **sides, "max_bytes": one.max_bytes, "reason": one.reason}


_WORDS = {"expired": "no longer known", "in_baseline": "in the baseline", "known": "known"}
_SUMS = {"core": ("text", "data"), "total": ("init", "exit", "text", "data")}


def _size(sizes: dict[str, int] | None, part: str) -> int | None:
    return None if sizes is None else sum(sizes.get(one, 0) for one in _SUMS.get(part, (part,)))


def _grown(growth: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    for one in growth:
        module, of = one["module"], one["of"]
        name = finding_id(STAGE, "growth", module, of)
        if one["after"] is None:
            text = f"{module}: its {of} cannot be judged: there is no such module"
            yield Finding(id=name, status=Status.ERROR, message=text, module=module)
            continue
        more = one["after"] - one["before"]
        if more > one["max_bytes"]:
            why = f" ({one['reason']})" if one["reason"] else ""
            text = f"{module}: {of} has {one['after']} bytes, {more} more than in the baseline"
            text += f"; allowed: {one['max_bytes']}{why}"
            yield Finding(id=name, status=Status.FAIL, message=text, module=module)


def _place(finding: Finding) -> Place:
    return finding.id, finding.host, place_of(finding.order) if finding.order else None


def _missing(host: str, order: str, status: Status | None, why: str) -> Finding:
    how = "was not run" if status is None else f"is {status}"
    return Finding(
        id=finding_id(STAGE, "not-judged", host, order),
        status=Status.MISS,
        message=f"{host}, {order}: {how}: {why}",
    )


def _ids(findings: Iterable[Finding]) -> list[str]:
    return sorted({one.id for one in findings})
