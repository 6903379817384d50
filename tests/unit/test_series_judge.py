"""Protects what a series says of a commit: worse is what `inv compare` calls so, what is missing never passes, what was
judged of the same modules is taken over whole, and a series that was killed is gone on with only by the same question.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kbuild import log
from kbuild.errors import JudgeError, UserError
from kbuild.gate.judging import Judging
from kbuild.gate.request import GateRequest
from kbuild.outcome import Finding, Status
from kbuild.profile import find_profile
from kbuild.progress import Silent
from kbuild.record import HostFacts, Record, Run, Stage, read_record
from kbuild.report.series import render
from kbuild.series.ask import question
from kbuild.series.bisect import BisectRequest, bisect
from kbuild.series.held import NOTHING, bring_up_to_date
from kbuild.series.judge import Judge, conclude, entries_of, is_whole, kernel_key
from kbuild.seriesrecord import Entry, begin, is_series, read_series, series_home
from kbuild.transcript import Transcript
from tests.unit.records import answer
from tests.unit.test_compare_runs import SOURCE, run_with

PASS, FAIL, ERROR, MISS, SKIP = Status.PASS, Status.FAIL, Status.ERROR, Status.MISS, Status.SKIP
LEFT = "load:leftover:slab/x:y"
STAGES = {"build": PASS, "inspect": PASS, "load": PASS}
NO_INSPECTION = STAGES | {"inspect": Status.MISS}
BROKEN = Finding(id="build:error:mmu.c:x", status=FAIL, message="it does not compile")


def left(status: Status = FAIL, host: str = "qemu-svm", order: str = "o", **more: Any) -> Finding:
    return Finding(id=LEFT, status=status, message="m", host=host, order=order, **more)


def gated(
    *findings: Finding, o: Status | None = PASS, other: Status | None = PASS, stages: Any = None, **more: Any
) -> Record:
    """A run of two orders on one host; None: not run."""
    cells = {name: status for name, status in (("o", o), ("other", other)) if status}
    return Record(
        **{
            "id": "1",
            "task": "gate",
            "command": "",
            "started": "",
            "verdict": PASS,
            "stages": [Stage(name, status) for name, status in (stages or STAGES).items()],
            "artifacts": {"kvm.ko": "a"},
            "transcripts": [Transcript(host="qemu-svm", order=name, status=status) for name, status in cells.items()],
            "findings": [*findings],
            **more,
        }
    )


def unbuilt(*findings: Finding) -> Record:
    return gated(*findings, o=None, other=None, stages={"build": FAIL}, verdict=FAIL, artifacts={})


def concluded(*records: Record) -> Entry:
    """What becomes of the last of these, one after the other."""
    held = NOTHING
    for one in records[:-1]:
        held = bring_up_to_date(held, one)
    entry = Entry(id="e", subject="s")
    conclude(entry, held, records[-1])
    return entry


KEPT, BAD = answer("kvm"), answer("kvm", FAIL, "violated")
OTHER_KERNEL = {"asked": 0, "answers": {}, "other_kernels": ["a-rule"]}


@pytest.mark.parametrize(
    ("records", "status", "blamed"),
    [
        ([gated(), gated()], PASS, []),
        ([gated(left(), o=FAIL), gated(left(), o=FAIL)], PASS, []),
        ([gated(), gated(left(), o=FAIL)], FAIL, [LEFT]),
        ([gated(left(), o=FAIL), gated(left(), left(host="bochs-vmx"), o=FAIL)], FAIL, [LEFT]),
        ([gated(left(known="k")), gated(left(), o=FAIL)], FAIL, [LEFT]),
        ([gated(left(ERROR), o=ERROR), gated(left(), o=FAIL)], FAIL, [LEFT]),
        ([gated(), gated(left(MISS), o=MISS)], MISS, []),
        ([gated(), gated(other=None)], MISS, []),
        ([gated(), gated(other=SKIP)], MISS, []),
        ([gated(), gated(other=None), gated(other=None)], MISS, []),
        ([gated(), gated(stages={"build": PASS, "load": PASS})], MISS, []),
        ([gated(), gated(o=None, other=None, stages={"build": PASS, "inspect": PASS})], MISS, []),
        ([gated(stages=STAGES | {"release": PASS}), gated()], MISS, []),
        ([gated(KEPT), gated(BAD)], FAIL, [BAD.id]),
        ([gated(KEPT), gated()], MISS, []),
        ([gated(KEPT), gated(), gated()], MISS, []),
        ([gated(KEPT), gated(rules=OTHER_KERNEL)], PASS, []),
        ([gated(), unbuilt(BROKEN)], FAIL, [BROKEN.id]),
        ([gated(), unbuilt(BROKEN), unbuilt(BROKEN)], MISS, []),
        ([unbuilt(BROKEN), unbuilt(BROKEN)], MISS, []),
        ([gated(left(), o=FAIL), unbuilt(BROKEN), gated(left(), o=FAIL)], PASS, []),
        ([gated(), unbuilt(BROKEN), gated(left(), o=FAIL)], FAIL, [LEFT]),
        ([gated(left(), o=FAIL), gated(o=MISS), gated(left(), o=FAIL)], PASS, []),
        ([unbuilt(BROKEN), gated(left(), BAD, o=FAIL)], FAIL, [BAD.id, LEFT]),
        ([gated(left(), o=FAIL)], FAIL, [LEFT]),
        ([gated(o=SKIP, other=SKIP, stages=STAGES | {"load": SKIP}, verdict=SKIP)], SKIP, []),
        ([gated(), gated(verdict=None, error="no such file")], ERROR, []),
        ([gated(), gated(verdict=MISS, error="a disk is full")], MISS, []),
        ([gated(BAD), gated(BAD, verdict=FAIL, error="a disk is full")], MISS, []),
        ([gated(BAD, o=MISS, verdict=FAIL), gated(BAD, o=MISS, verdict=FAIL)], MISS, []),
        ([gated(left(), o=FAIL, other=MISS, verdict=FAIL)] * 2, MISS, []),
        ([gated(BAD, stages=NO_INSPECTION, verdict=FAIL)] * 2, MISS, []),
    ],
    ids=[
        "as before",
        "as bad as before",
        "worse",
        "worse on another host",
        "no longer known",
        "graver",
        "the machine failed",
        "an order is not run",
        "an order is skipped",
        "nor in the next one",
        "a stage is not run",
        "nothing is loaded",
        "no release policy",
        "a rule is broken",
        "a rule is not asked",
        "nor in the next one",
        "a rule for other kernels",
        "does not build",
        "does not build, as the one before it",
        "as what it stands on does not",
        "behind one that does not build, as before that",
        "behind one that does not build, worse than before that",
        "behind a machine that failed",
        "nothing was judged before",
        "the first",
        "all was skipped",
        "refused",
        "MISS",
        "the machine failed behind what is bad as before",
        "a host never ran, and what is bad is as before",
        "one order never ran, and what is bad is as before",
        "the machine failed at a stage, and what is bad is as before",
    ],
)
def test_outcomes(records: list[Record], status: Status, blamed: list[str]) -> None:
    entry = concluded(*records)
    assert (entry.status, entry.blamed) == (status, blamed)
    assert entry.reason or entry.blamed or entry.status == PASS, "what is no finding is said"


def test_what_is_missing_is_named() -> None:
    entry = concluded(gated(), gated(o=None, other=None))
    assert entry.reason == "qemu-svm, o: PASS → not run and 1 more"
    assert entry.evidence == ["qemu-svm, o: PASS → not run", "qemu-svm, other: PASS → not run"]


def test_mended_is_what_is_gone_where_it_was_looked_for() -> None:
    bad = gated(left(), BAD, o=FAIL)
    assert concluded(bad, gated(KEPT)).mended == [BAD.id, LEFT]
    assert concluded(bad, gated(BAD, o=None)).mended == []
    assert concluded(bad, gated()).mended == [LEFT], "the rule was not asked"
    assert concluded(bad, unbuilt(BROKEN)).mended == []
    assert concluded(bad, unbuilt(BROKEN), gated(KEPT)).mended == [BROKEN.id, BAD.id, LEFT]
    assert concluded(gated(left(), o=FAIL), gated(left(known="k"))).mended == [LEFT]


@pytest.mark.parametrize("kind", ["", "page-"])
def test_runs_that_are_numbered_may_become_fewer(kind: str) -> None:
    """Another kernel allocates less often on its way: the order has been run all the same."""

    def swept(*statuses: Status) -> Record:
        some = [Transcript(host="h", order=f"sweep@{kind}{n}", status=one) for n, one in enumerate(statuses)]
        return gated(transcripts=some)

    assert concluded(swept(PASS, PASS, PASS), swept(PASS, PASS)).status == PASS
    assert concluded(swept(PASS, PASS, PASS), swept(PASS, FAIL)).status == FAIL
    assert concluded(swept(PASS, PASS), gated()).status == MISS


class Made:
    """What a run of a commit comes to, without a kernel."""

    def __init__(self, entry: Entry, failing: Sequence[str], closed: list[str]) -> None:
        self._name, self._closed = entry.id, closed
        self.over = False
        self.run = Run("gate", "")
        self._end = gated(left(), o=FAIL, verdict=FAIL) if entry.id in failing else gated()

    def judge(self) -> None:
        for name in ("stages", "transcripts", "findings", "verdict"):
            setattr(self.run.record, name, getattr(self._end, name))
        self.over = True

    def close(self) -> None:
        self._closed.append(self._name)


@pytest.mark.parametrize("ahead", [1, 3])
def test_stop_ends_at_the_first_to_blame(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """Not at a later one that is known before anything is judged, and not behind one that is built by then."""
    closed: list[str] = []
    monkeypatch.setattr(Judge, "_build", lambda _, entry: Made(entry, ["two"], closed))
    entries = entries_of(("base", ""), [(name, "") for name in ("one", "two", "three", "four")])
    entries.append(Entry(id="patch 5", subject="", status=FAIL, reason="does not apply"))
    series = begin("k", "", "", entries)
    request = GateRequest(task="gate", command="")
    Judge(series, lambda _: request, lambda _: Silent(), lambda _: None, stop=True, ahead=ahead).run()
    assert [one.status for one in entries] == [PASS, PASS, FAIL, SKIP, SKIP, FAIL]
    assert entries[3].run is None
    assert closed.count("three") == 1, "what was built of it is ended"


def test_each_kind_of_package_is_held_against_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "_build", lambda _, entry: Made(entry, ["rt=1", "rt=2"], []))
    entries = entries_of(None, [(name, "") for name in ("plain=1", "plain=2", "rt=1", "rt=2")])
    for entry in entries:
        entry.kind = entry.id.partition("=")[0]
    request = GateRequest(task="gate", command="")
    judge = Judge(begin("k", "", "", entries), lambda _: request, lambda _: Silent(), lambda _: None)
    judge.run()
    assert [(one.status, one.blamed) for one in entries] == [(PASS, []), (PASS, []), (FAIL, [LEFT]), (PASS, [])]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_same_modules_are_judged_once_and_the_release_policy_of_each(state: Path) -> None:
    first = Run("gate", "")
    (first.folder / "agent").write_bytes(b"the agent")
    (first.folder / "inspect.json").write_text("{}")
    sizes = {"kvm": {"init": 5000, "exit": 0, "text": 0, "data": 0}}
    facts = gated(
        BROKEN, BAD, left(), o=FAIL, sizes=sizes, machines={"qemu-svm": HostFacts("qemu", "EPYC", 1, 256, ())}
    )
    for key in ("stages", "findings", "transcripts", "sizes", "machines"):
        setattr(first.record, key, getattr(facts, key))
    first.record.agent, first.record.kernel, first.record.hosts = "digest", "6.1.192-kbuild", {"qemu-svm": "QEMU 7.2"}
    first.finish(FAIL)
    smaller = msgspec.structs.replace(first.record, sizes={"kvm": sizes["kvm"] | {"init": 10}}, findings=[])
    (state / "baseline.json").write_bytes(msgspec.json.encode(smaller))
    shipped = find_profile("default").read_text()
    (state / "mine.toml").write_text(
        f'{shipped}\n[release]\nowners = false\n[[release.growth]]\nof = "init"\nmax_bytes = 9\n'
    )
    request = GateRequest(
        task="gate", command="", profile=str(state / "mine.toml"), baseline=str(state / "baseline.json"), verbosity=-1
    )
    log.configure(-1)
    with Judging(request, Silent()) as judging:
        judging.take_over(first.record, first.folder)
    record, folder = judging.run.record, judging.run.folder
    assert read_record(record.id) == record
    assert (folder / "agent").read_bytes() == b"the agent"
    assert (folder / "inspect.json").is_file()
    for key in ("sizes", "machines", "hosts", "agent", "kernel", "transcripts"):
        assert getattr(record, key) == getattr(first.record, key), key
    assert [one.id for one in record.findings] == [BAD.id, LEFT, "release:growth:kvm:init"], "a build is its own"
    assert [(one.name, one.status) for one in record.stages] == [("inspect", PASS), ("load", PASS), ("release", FAIL)]
    assert record.release is not None
    assert record.release["counting"] == sorted(one.id for one in record.findings)
    assert record.verdict == FAIL


@pytest.mark.parametrize("load", [PASS, FAIL, ERROR, MISS, SKIP, None])
def test_what_was_left_open_is_not_taken_over(load: Status | None) -> None:
    record = gated(stages=STAGES | {"load": load}, verdict=FAIL)
    assert is_whole(record) == (load in (PASS, FAIL))


@pytest.mark.parametrize("other", [PASS, FAIL, ERROR, MISS, SKIP])
def test_nor_where_one_order_was(other: Status) -> None:
    assert is_whole(gated(o=FAIL, other=other, verdict=FAIL)) == (other in (PASS, FAIL, SKIP))


def test_other_selftests_are_another_question() -> None:
    run = run_with(SOURCE, "")
    run.record.artifacts["bzImage"] = "k"
    before = kernel_key(run.record, run.folder)
    (run.folder / "selftests").mkdir()
    (run.folder / "selftests/smm_test").write_bytes(b"a")
    one = kernel_key(run.record, run.folder)
    (run.folder / "selftests/smm_test").write_bytes(b"b")
    assert len({before, one, kernel_key(run.record, run.folder)}) == 3


def test_what_it_changed_has_the_sizes_of_slab_caches(capsys: pytest.CaptureFixture[str]) -> None:
    entries = entries_of(("0", "base"), [("1", "larger"), ("2", "as before")])
    series = begin("k", "", "test", entries)
    judge = Judge(series, lambda _: GateRequest(task="gate", command=""), lambda _: Silent(), lambda _: None)
    larger = SOURCE.replace("128", "192")
    for entry, source in zip(entries, (SOURCE, larger, larger), strict=True):
        run = run_with(source, "")
        entry.run = run.record.id
        judge._conclude(entry, run.record)
    assert entries[1].changes is not None
    assert entries[1].changes["caches"] == [{"module": "m", "cache": "a_cache", "before": [128], "after": [192]}]
    assert (entries[0].changes, entries[2].changes) == (None, None)
    series.finish()
    render(series.record)
    assert "a_cache (m), bytes of an object: 128 → 192" in capsys.readouterr().out


# On disk.


def test_it_says_its_format_and_a_later_one_is_refused() -> None:
    series = begin("k", "", "test", entries_of(None, [("1", "s")]))
    path = series_home() / series.record.id / "series.json"
    data = json.loads(path.read_text())
    assert data["format"] == 1
    assert is_series(series.record.id)
    path.write_text(json.dumps(data | {"later": True}))
    assert read_series(series.record.id) == series.record
    path.write_text(json.dumps(data | {"format": 2, "entries": "otherwise"}))
    with pytest.raises(UserError, match=r"series\.json: written by a later version of this tool; read it with that"):
        read_series(series.record.id)
    assert begin("k", "", "test", []).record.id != series.record.id, "nobody goes on with it"
    del data["format"]
    path.write_text(json.dumps(data))
    assert read_series(series.record.id).format == 1
    path.write_text("[]")
    with pytest.raises(UserError, match="no record of this tool"):
        read_series(series.record.id)


def test_only_what_ended_is_not_gone_on_with() -> None:
    series = begin("k", "", "test", entries_of(None, [("1", "s"), ("3", "s")]))
    series.record.entries.insert(1, Entry(id="2", subject="tried by a bisect"))
    series.save()
    again = begin("k", "", "test", entries_of(None, [("1", "s"), ("3", "s")]))
    assert [one.id for one in again.record.entries] == ["1", "2", "3"]
    again.finish()
    assert begin("k", "", "test", []).record.id != series.record.id


def test_a_run_that_somebody_removed_is_made_again() -> None:
    entries = entries_of(None, [("1", "s")])
    judge = Judge(
        begin("k", "", "test", entries), lambda _: GateRequest(task="gate", command=""), lambda _: Silent(),
        lambda _: None,
    )  # fmt: skip
    entries[0].run, entries[0].verdict, entries[0].status = "20260101-000000-0000", PASS, PASS
    assert not judge._remember(entries[0])
    assert not entries[0].over


def test_other_contents_of_a_file_are_another_question(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(state)
    shipped = find_profile("default").parent
    for name in ("orders/vendor-alone.toml", "hosts/qemu-svm.toml", "rules/kvm.toml", "default.toml"):
        (state / name).parent.mkdir(exist_ok=True)
        (state / name).write_text((shipped / name).read_text())
    request = GateRequest(
        task="gate", command="", profile="./default.toml", orders=("vendor-alone",), hosts=("qemu-svm",), rules=("kvm",)
    )
    seen = [question(request)]
    assert question(request) == seen[0]
    for name in ("orders/vendor-alone.toml", "hosts/qemu-svm.toml", "rules/kvm.toml", "default.toml"):
        (state / name).write_text((state / name).read_text() + "\n# another one\n")
        now = question(request)
        assert now not in seen, name
        seen.append(now)


# Bisect, over commits whose answers are made by hand: no machine fails on demand.


@pytest.fixture
def commits(state: Path) -> tuple[Path, list[str]]:
    """A checkout with a commit for each answer, oldest first."""
    tree = state / "linux"
    tree.mkdir()

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", tree, *identity, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    names = []
    for number in range(8):
        (tree / "file").write_text(str(number))
        git("add", "file")
        git("commit", "--quiet", f"--message=number {number}")
        names.append(git("rev-parse", "HEAD"))
    return tree, names


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Record]:
    """Commit to record, in place of a gate; a commit that is not there is a kill."""
    records: dict[str, Record] = {}

    def one(_: Judge, entry: Entry) -> Record:
        if entry.id not in records:
            raise KeyboardInterrupt
        entry.run, entry.verdict = entry.id, records[entry.id].verdict
        return records[entry.id]

    monkeypatch.setattr(Judge, "one", one)
    return records


def searched(tree: Path, names: Sequence[str], finding: str | None = LEFT) -> tuple[list[str], str | None]:
    """What was said of the commits, and which one it was."""
    request = BisectRequest(
        gate=GateRequest(task="gate", command="", tree=str(tree), verbosity=-1),
        good=names[0], bad=names[-1], finding=finding,
    )  # fmt: skip
    record, first = bisect(request, Silent(), lambda *_: None)
    said = {entry.id: str(entry.status) for entry in record.entries}
    return [said.get(name, "-") for name in names], first.subject if first else None


UNTOLD = (
    gated(left(ERROR), o=ERROR),
    gated(left(MISS), o=MISS),
    gated(o=ERROR),
    gated(o=None),
    gated(o=SKIP),
    unbuilt(BROKEN),
)


@pytest.mark.parametrize("untold", UNTOLD, ids=["ERROR", "MISS", "another ERROR", "not run", "skipped", "not built"])
def test_bisect_skips_what_could_not_be_told(
    commits: tuple[Path, list[str]], answers: dict[str, Record], untold: Record
) -> None:
    tree, names = commits
    good, bad = gated(), gated(left(), o=FAIL)
    answers |= dict(zip(names, [good, good, good, untold, good, bad, bad, bad], strict=True))
    said, first = searched(tree, names)
    assert first == "number 5"
    assert said[3] in ("SKIP", "-")
    assert "SKIP" in said


def test_what_the_machine_failed_at_is_not_looked_for(
    commits: tuple[Path, list[str]], answers: dict[str, Record]
) -> None:
    tree, names = commits
    missed = Finding(id="load:starved:qemu-svm:x", status=MISS, message="m", host="qemu-svm", order="other")
    good, bad = gated(), gated(left(), missed, o=FAIL, other=MISS)
    starved = gated(missed, other=MISS)
    answers |= dict(zip(names, [good, good, starved, starved, good, bad, bad, bad], strict=True))
    assert searched(tree, names, None)[1] == "number 5"


def test_what_is_left_cannot_be_told_apart(commits: tuple[Path, list[str]], answers: dict[str, Record]) -> None:
    tree, names = commits
    answers |= dict(zip(names, [gated(), *[unbuilt(BROKEN)] * 6, gated(left(), o=FAIL)], strict=True))
    assert searched(tree, names)[1] is None


def test_a_bisect_that_was_killed_goes_on(commits: tuple[Path, list[str]], answers: dict[str, Record]) -> None:
    tree, names = commits
    good, bad = gated(), gated(left(), o=FAIL)
    every = dict(zip(names, [good, good, bad, bad, bad, bad, bad, bad], strict=True))
    for known in ((0,), (0, 7), (0, 7, 3), (0, 7, 3, 4)):
        answers.clear()
        answers |= {names[number]: every[names[number]] for number in known}
        with pytest.raises(KeyboardInterrupt):
            searched(tree, names)
    (path,) = series_home().glob("*/series.json")
    begun = {one.id for one in read_series(str(path.parent)).entries if one.status}
    assert len(begun) > 2, "it stood at a commit between the two ends"
    answers |= every
    assert searched(tree, names)[1] == "number 2"
    assert [*series_home().glob("*/series.json")] == [path], "it was the same one"


def test_bisect_says_why_it_cannot_begin(commits: tuple[Path, list[str]], answers: dict[str, Record]) -> None:
    tree, names = commits
    good, bad = gated(), gated(left(), o=FAIL)
    for first, last, why in (
        (bad, bad, "is in it already"),
        (good, good, "is not in it"),
        (gated(o=MISS), bad, "could not be looked for"),
        (good, gated(left(MISS), o=MISS), "the machine failed in it"),
    ):
        answers |= {names[0]: first, names[-1]: last}
        with pytest.raises(JudgeError, match=why):
            searched(tree, names)
    assert {read_series(str(one.parent)).verdict for one in series_home().glob("*/series.json")} == {ERROR}
