"""Protects the list of runs and the history of findings: always what the records say, whatever becomes of the index."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from kbuild.errors import UserError
from kbuild.outcome import Finding, Status
from kbuild.record import Run, runs_home
from kbuild.report.runs import render
from kbuild.runs.index import VERSION, index_file
from kbuild.runs.listing import Filter, list_runs
from kbuild.transcript import StepResult, Transcript

pytestmark = pytest.mark.usefixtures("private_cache")
RECORDS = Path(__file__).parent.parent / "data/records"
LEAK = "load:leftover:slab/kvm_vcpu:vendor-alone"


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def make_run(
    *found: Finding,
    build: str = "one",
    orders: Iterable[tuple[str, str, Status]] = (("qemu-svm", "vendor-alone", Status.PASS),),
    **more: Any,
) -> str:
    """A run that came to its end, as a gate leaves it."""
    run = Run("gate", "inv gate")
    record = run.record
    record.tree, record.kernel = {"asked": "debian:6.1", "identity": "linux-source-6.1 6.1.192-3"}, "6.1.192-kbuild"
    record.artifacts = {"kvm.ko": build, "bzImage": "kernel", "System.map": run.record.id}
    record.hosts = {"qemu-svm": "QEMU 7.2"}
    record.transcripts = [Transcript(host=host, order=order, status=status) for host, order, status in orders]
    record.findings = [*found]
    for key, value in more.items():
        setattr(record, key, value)
    with run.stage("inspect") as stage:
        stage.status = Status.PASS
    run.finish(Status.FAIL if any(one.status == Status.FAIL and not one.known for one in found) else Status.PASS)
    return record.id


def leak(status: Status = Status.FAIL, **more: Any) -> Finding:
    where = {"host": "qemu-svm", "order": "vendor-alone"}
    return Finding(id=LEAK, status=status, message="a cache is left", **{**where, **more})


def history(name: str = LEAK) -> dict[str, Any]:
    (one,) = list_runs(Filter(finding=name))["findings"]
    found: dict[str, Any] = one
    return found


def listed(**wanted: str) -> list[str]:
    return [one["run"] for one in list_runs(Filter(**wanted))["runs"]]


def test_runs_come_newest_first_and_can_be_chosen() -> None:
    first, second = make_run(), make_run(leak())
    third = make_run(tree={"asked": "/home/dev/linux", "identity": "commit 12ab"}, started="2020-01-01T00:00:00+00:00")
    assert listed() == [second, first, third]
    assert listed(tree="debian:*") == [second, first]
    assert listed(tree="commit *") == [third]
    assert listed(verdict="fail") == [second]
    assert listed(since="1d") == [second, first]
    assert listed(since="2021-01-01") == [second, first]
    assert listed(finding="load:leftover:*") == [second]
    assert listed(tree="debian:*", verdict="PASS") == [first]
    (facts,) = list_runs(Filter(verdict="FAIL"))["runs"]
    assert (facts["state"], facts["kernel"], facts["counting"], facts["problem"]) == (
        "ended",
        "6.1.192-kbuild",
        1,
        None,
    )


@pytest.mark.parametrize("wanted", [{"since": "2 weeks"}, {"since": "2026-13-01"}, {"verdict": "BAD"}])
def test_what_cannot_be_asked_is_one_line(wanted: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"^--(since|verdict) .*"):
        list_runs(Filter(**wanted))


def test_how_a_run_ended_that_has_no_verdict() -> None:
    running = Run("gate", "")
    stopped = Run("gate", "")
    stopped.interrupt()
    killed = subprocess.run(
        [sys.executable, "-c", "from kbuild.record import Run; print(Run('gate', '').record.id)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    states = {one["run"]: one["state"] for one in list_runs(Filter())["runs"]}
    assert states == {running.record.id: "running", stopped.record.id: "interrupted", killed: "killed"}


def test_the_index_follows_the_records() -> None:
    first = make_run()
    assert listed() == [first]
    second = make_run(leak())
    assert listed() == [second, first]
    shutil.rmtree(runs_home() / first)
    assert listed() == [second]
    path = runs_home() / second / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": "MISS"}))
    assert listed(verdict="MISS") == [second]
    assert history()["runs"] == [second]


@pytest.mark.parametrize("damage", ["junk", "cut", "version", "empty", "page", "tables"])
def test_an_index_that_does_not_fit_is_made_anew(damage: str) -> None:
    runs = [make_run(leak()) for _ in range(40)]
    assert history()["found"] == 40
    path = index_file()
    content = path.read_bytes()
    match damage:
        case "junk":
            path.write_bytes(os.urandom(10000))
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "page":
            path.write_bytes(content[:8192] + b"\xff" * 8192 + content[16384:])
        case _:
            with sqlite3.connect(path) as database:
                change = "DROP TABLE finding" if damage == "tables" else f"PRAGMA user_version = {VERSION + 1}"
                database.execute(change)
            database.close()
    assert listed() == runs[::-1]
    assert history()["found"] == 40


def test_without_a_cache_the_records_still_answer(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder can be made here")
    run = make_run(leak())
    assert listed(finding=LEAK) == [run]


def test_several_ask_at_once() -> None:
    runs = [make_run(leak()) for _ in range(20)]
    code = "from kbuild.runs.listing import *; print(len(list_runs(Filter(finding='load:*'))['runs']))"
    askers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert {int(one.communicate()[0]) for one in askers} == {len(runs)}


def test_a_damaged_record_is_one_line_and_no_more() -> None:
    good, bad = make_run(leak()), make_run(leak())
    (runs_home() / bad / "record.json").write_bytes(b'{"format": 1, "id": ')
    data = list_runs(Filter())
    assert {one["run"]: one["state"] for one in data["runs"]} == {good: "ended", bad: "damaged"}
    assert history()["runs"] == [good]
    stream = StringIO()
    render(data, stream=stream)
    assert [line.partition(": ")[0] for line in stream.getvalue().splitlines() if "not a record" in line] == ["damaged"]


def test_a_finding_that_comes_and_goes_with_the_same_bytes_is_flaky() -> None:
    having = [make_run(leak()), make_run(leak(status=Status.ERROR))]
    without = make_run()
    other_kernel = make_run(build="two")
    found = history()
    assert (found["found"], found["looked_for"], found["steadiness"]) == (2, 4, "flaky")
    (group,) = found["flaky"]
    assert (group["host"], group["order"]) == ("qemu-svm", "vendor-alone")
    assert (group["found"], group["not_found"]) == (having, [without])
    assert found["first"]["run"] == having[0]
    assert found["last"]["run"] == having[1]
    assert found["last_looked_for"]["run"] == other_kernel


def test_what_was_not_looked_for_is_no_sign_of_its_absence() -> None:
    """The order was skipped, not run, or could not be judged; or it ran on another host or with another setting."""
    where = ("qemu-svm", "vendor-alone")
    make_run(leak())
    make_run(leak())
    for status in (Status.SKIP, Status.MISS, Status.ERROR):
        make_run(orders=[(*where, status)])
    make_run(orders=[])
    make_run(orders=[("bochs-vmx", "vendor-alone", Status.PASS)])
    found = history()
    assert (found["found"], found["looked_for"], found["steadiness"]) == (2, 2, "steady")
    make_run(hosts={"qemu-svm": "QEMU 9.0"})
    make_run(profile_files={"orders/vendor-alone.toml": "other"})
    found = history()
    assert (found["looked_for"], found["steadiness"]) == (4, "steady")


def test_the_runs_of_a_sweep_are_one() -> None:
    """The same call site has other numbers in another guest; a setting of parameters is always the same one."""

    def at(run: str, status: Status = Status.FAIL) -> tuple[str, str, Status]:
        return "qemu-svm", f"faults@{run}", status

    make_run(leak(order="faults@7"), orders=[at("7"), at("8", Status.PASS)])
    make_run(leak(order="faults@8"), orders=[at("7", Status.PASS), at("8")])
    make_run(orders=[at("7", Status.PASS), at("8", Status.ERROR)])
    found = history()
    assert (found["found"], found["looked_for"], found["steadiness"]) == (2, 2, "steady")
    make_run(leak(order="faults@tdp=0"), orders=[at("tdp=0"), at("tdp=1", Status.PASS)])
    make_run(leak(order="faults@tdp=1"), orders=[at("tdp=0", Status.PASS), at("tdp=1")])
    assert {one["order"] for one in history()["flaky"]} == {"faults@tdp=0", "faults@tdp=1"}


def test_what_follows_from_a_fault_is_looked_for_where_it_was_injected() -> None:
    name = "load:leftover:debugfs/kvm:fault=kvm_init/misc_register"
    found = Finding(id=name, status=Status.FAIL, message="m", host="qemu-svm", order="faults@7")

    def sweep(site: str) -> list[Transcript]:
        step = StepResult(number=1, action="inject", status=Status.PASS, detail={"site": site})
        return [Transcript(host="qemu-svm", order="faults@7", status=Status.PASS, steps=[step])]

    for _ in range(2):
        make_run(found, transcripts=sweep("kvm_init/misc_register"))
    make_run(transcripts=sweep("kvm_init/kmem_cache_create"))
    one = history(name)
    assert (one["found"], one["looked_for"], one["steadiness"]) == (2, 2, "steady")
    make_run(transcripts=sweep("kvm_init/misc_register"))
    assert history(name)["steadiness"] == "flaky"


def test_a_rule_is_found_where_it_breaks() -> None:
    def answer(status: Status, said: str) -> Finding:
        return Finding(id="inspect:rule:kvm:r", status=status, message="m", rule="r", module="kvm", answer=said)

    kept = make_run(answer(Status.PASS, "proved"), build="before")
    broken = make_run(answer(Status.FAIL, "violated"), build="after")
    make_run(build="after")  # the rule was not asked
    found = history("inspect:rule:*")
    assert (found["found"], found["looked_for"], found["runs"]) == (1, 2, [broken])
    assert found["steadiness"] == "not repeated"
    assert kept not in listed(finding="inspect:rule:*")


def test_a_record_of_the_first_version_is_listed() -> None:
    folder = runs_home() / "20261129-211815-f150"
    folder.mkdir(parents=True)
    shutil.copy(RECORDS / "first-gate.json", folder / "record.json")
    (facts,) = list_runs(Filter(tree="/home/dev/*"))["runs"]
    assert (facts["verdict"], facts["state"], facts["kernel"]) == ("PASS", "ended", "6.1.192-kbuild")


def test_what_a_person_reads() -> None:
    make_run(leak(known="it is known [us]"))
    make_run()
    stream = StringIO()
    render(list_runs(Filter(finding=LEAK)), stream=stream)
    text = stream.getvalue()
    assert "found in 1 of 2 runs that looked for it; flaky" in text
    assert "flaky: the same kernel and modules, qemu-svm, vendor-alone: found in " in text
    assert "known: it is known [us]" in text
