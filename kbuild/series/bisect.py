"""At which commit a finding appears: git's own bisect, in a repository of ours, which asks a gate for each commit."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kbuild import log
from kbuild.cache.limit import cache_limit, trim
from kbuild.configure import git
from kbuild.errors import HarnessError, JudgeError, UserError
from kbuild.gate.request import GateRequest
from kbuild.outcome import Finding, Known, Status
from kbuild.paths import locked
from kbuild.progress import Prefixed, Reporter
from kbuild.record import Record
from kbuild.runs.compare import looked_for
from kbuild.series.ask import checkout_of, of_tree, question
from kbuild.series.commits import commit, repository
from kbuild.series.judge import Judge, entries_of
from kbuild.seriesrecord import Entry, SeriesRecord, begin, holding, key_of

_FIRST = re.compile(r"^([0-9a-f]{40}) is the first bad commit", re.MULTILINE)
_UNTOLD = "We cannot bisect more!"


@dataclass(frozen=True, kw_only=True)
class BisectRequest:
    """Between which commits, and what is looked for."""

    gate: GateRequest
    good: str
    bad: str
    finding: str | None = None
    """A glob of its id, as in `[[known]]`; None: whatever counts in the bad one and does not in the good one."""


def bisect(
    request: BisectRequest, reporter: Reporter, tell: Callable[[SeriesRecord, Entry], None]
) -> tuple[SeriesRecord, Entry | None]:
    """The commits that were tried, in their order, and the first bad one; None where what is left cannot be told apart.

    Raises UserError where the input is wrong, JudgeError where the finding is not in the bad commit, or is in the good.
    """
    log.configure(request.gate.verbosity)
    limit = cache_limit(request.gate.cache_gb)
    started = time.time()
    folder = checkout_of(request.gate, f"bisect {request.good} {request.bad}")
    good = commit(folder, git.commit_of(folder, request.good, "--good"))
    bad = commit(folder, git.commit_of(folder, request.bad, "--bad"))
    if git.call("-C", folder, "merge-base", "--is-ancestor", good.id, bad.id, check=False).status:
        raise UserError(f"--good {request.good}: it is no ancestor of {request.bad}")
    key = key_of(["bisect", request.finding or "", *question(request.gate), good.id, bad.id])
    with holding(key) as ours:
        if not ours:
            raise UserError("bisect: another one is at it with the same options; wait for its end")
        entries = entries_of((good.id, good.subject), [(bad.id, bad.subject)])
        made = begin(key, request.gate.command, f"bisect {request.good}..{request.bad} of {folder}", entries)
        judge = Judge(
            made,
            of_tree(request.gate, str(folder)),
            lambda entry: Prefixed(reporter, entry.name),
            lambda entry: tell(made.record, entry),
        )
        try:
            first = _Bisect(request, folder, judge).run(good.id, bad.id)
        except JudgeError:
            made.finish_as(Status.ERROR)  # nothing to be gone on with
            raise
        made.finish_as(Status.DONE if first else Status.ERROR)
        trim(limit, spare_since=started)
    return made.record, first


class _Bisect:
    def __init__(self, request: BisectRequest, folder: Path, judge: Judge) -> None:
        self._request = request
        self._folder = folder
        self._judge = judge
        self._entries = judge.series.record.entries
        self._wanted: list[Finding] = []
        """As the bad commit has them."""

    def run(self, good: str, bad: str) -> Entry | None:
        was, now = (self._judge.one(self._entry(one)) for one in (good, bad))
        had = {one.id for one in _counting(was)}
        if self._request.finding is None:
            self._wanted = [one for one in _counting(now) if one.id not in had]
        else:
            known = Known(finding=self._request.finding, reason="")
            self._wanted = [one for one in _counting(now) if known.matches(one)]
            if any(map(known.matches_id, had)):
                raise JudgeError(f"--good {self._request.good}: {self._request.finding} is in it already")
        what = self._request.finding or "a finding that counts"
        missed = self._wanted and all(one.status == Status.MISS for one in self._wanted)
        # What the machine failed at is no commit's doing.
        self._wanted = [one for one in self._wanted if one.status != Status.MISS]
        if missed:
            raise JudgeError(f"--bad {self._request.bad}: the machine failed in it, nothing else: give --bad once more")
        if not self._wanted:
            more = "" if self._request.finding else " that the good one does not have"
            raise JudgeError(f"--bad {self._request.bad}: {what}{more} is not in it")
        self._wanted = [one for one in self._wanted if looked_for(one, was)]
        if not self._wanted:
            raise JudgeError(f"--good {self._request.good}: {what} could not be looked for in it")
        self._mark(self._entry(good), Status.PASS)
        self._mark(self._entry(bad), Status.FAIL)
        ours = repository(self._folder, "bisect")
        with locked(ours.with_suffix(".lock")):
            git.check_out(self._folder, bad, ours)
            self._git(ours, "bisect", "reset", check=False)  # of one that was killed
            said = self._git(ours, "bisect", "start", "--no-checkout", bad, good)
            while not (found := _FIRST.search(said)):
                if _UNTOLD in said:
                    return None
                at = self._git(ours, "rev-parse", "BISECT_HEAD").strip()
                said = self._git(ours, "bisect", self._answer(at), at, check=False)
            self._git(ours, "bisect", "reset", check=False)
        first = self._entry(found[1])
        first.blamed = sorted({one.id for one in self._wanted})
        return first

    def _answer(self, at: str) -> str:
        """What git is told of a commit."""
        entry = self._entry(at)
        record = self._judge.one(entry)
        found = {(one.id, one.status) for one in _counting(record)}
        if any((one.id, one.status) in found for one in self._wanted):
            self._mark(entry, Status.FAIL)
            return "bad"
        # What does not build, or was not told for the machine failed or the log is not understood, says nothing.
        if any(one.id == name for one in self._wanted for name, _ in found) or not all(
            looked_for(one, record) for one in self._wanted
        ):
            self._mark(entry, Status.SKIP)
            return "skip"
        self._mark(entry, Status.PASS)
        return "good"

    def _mark(self, entry: Entry, status: Status) -> None:
        entry.status = status
        self._judge.series.save()
        self._judge.tell(entry)

    def _entry(self, name: str) -> Entry:
        """The entry of a commit, made in its place: between the two ends, in the order in which they are tried."""
        for entry in self._entries:
            if entry.id == name:
                return entry
        entry = Entry(id=name, subject=commit(self._folder, name).subject)
        self._entries.insert(len(self._entries) - 1, entry)
        return entry

    @staticmethod
    def _git(folder: Path, *arguments: str, check: bool = True) -> str:
        done = git.call("-C", folder, *arguments, check=False, env={"LC_ALL": "C"})
        if check and done.status:
            raise HarnessError(f"{folder}: git {' '.join(arguments[:2])}: {done.output.strip()[-200:]}")
        return done.output


def _counting(record: Record) -> list[Finding]:
    return [one for one in record.findings if one.counts]
