"""At which commit a finding appears: git's own bisect, in a repository of ours, which asks a gate for each commit."""

from __future__ import annotations

import hashlib
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
from kbuild.outcome import Known, Status
from kbuild.paths import cache_home, locked, make_folder
from kbuild.progress import Prefixed, Reporter
from kbuild.record import Record
from kbuild.series.ask import checkout_of, of_tree, question, short
from kbuild.series.commits import commit
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
    """The commits that were tried, in their order, and the first bad one; None where those that are left do not build.

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
            lambda entry: Prefixed(reporter, short(entry)),
            lambda entry: tell(made.record, entry),
        )
        first = _Bisect(request, folder, judge).run(good.id, bad.id)
        made.finish_as(Status.DONE if first else Status.ERROR)
        trim(limit, spare_since=started)
    return made.record, first


class _Bisect:
    def __init__(self, request: BisectRequest, folder: Path, judge: Judge) -> None:
        self._request = request
        self._folder = folder
        self._judge = judge
        self._entries = judge.series.record.entries
        self._wanted: set[str] = set()

    def run(self, good: str, bad: str) -> Entry | None:
        was, now = (self._counting(self._judge.one(self._entry(one))) for one in (good, bad))
        if self._request.finding is None:
            self._wanted = now - was
        else:
            known = Known(finding=self._request.finding, reason="")
            self._wanted = {name for name in was | now if known.matches_id(name)}
        what = self._request.finding or "a finding that counts"
        if not self._wanted & now:
            more = "" if self._request.finding else " that the good one does not have"
            raise JudgeError(f"--bad {self._request.bad}: {what}{more} is not in it")
        if self._wanted & was:
            raise JudgeError(f"--good {self._request.good}: {what} is in it already")
        self._mark(self._entry(good), Status.PASS)
        self._mark(self._entry(bad), Status.FAIL)
        home = make_folder(cache_home() / "series")
        ours = home / f"bisect-{hashlib.sha256(str(self._folder).encode()).hexdigest()[:10]}"
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
        first.blamed = sorted(self._wanted)
        return first

    def _answer(self, at: str) -> str:
        """What git is told of a commit."""
        entry = self._entry(at)
        record = self._judge.one(entry)
        stages = {stage.name: stage.status for stage in record.stages}
        if self._wanted & self._counting(record):
            self._mark(entry, Status.FAIL)
            return "bad"
        looked = {name.partition(":")[0] for name in self._wanted}
        # A stage that did not come to an answer, for the commit does not build or a machine failed, says nothing.
        if any(stages.get(stage) not in (Status.PASS, Status.FAIL, Status.ERROR) for stage in looked):
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
    def _counting(record: Record) -> set[str]:
        return {one.id for one in record.findings if one.status.counts and not one.known}

    @staticmethod
    def _git(folder: Path, *arguments: str, check: bool = True) -> str:
        done = git.call("-C", folder, *arguments, check=False, env={"LC_ALL": "C"})
        if check and done.status:
            raise HarnessError(f"{folder}: git {' '.join(arguments[:2])}: {done.output.strip()[-200:]}")
        return done.output
