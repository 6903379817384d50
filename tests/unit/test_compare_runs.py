"""Protects what is said of two runs: what got worse, what only differs, and that nothing that is missing passes."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from kbuild.build.artifacts import file_digest
from kbuild.outcome import Finding, Status
from kbuild.record import Record, Run, Stage
from kbuild.report.compare import render
from kbuild.runs.compare import changed_ids, compare_records, compare_runs, looked_for
from kbuild.transcript import Transcript

PLACE: dict[str, Any] = {"host": "qemu-svm", "order": "vendor-alone"}


def record(*findings: Finding, cells: Mapping[str, Status] | None = None, **more: Any) -> Record:
    """A run that judged one order on one host, or these ones."""
    given: dict[str, Any] = {
        "id": "1",
        "task": "gate",
        "command": "",
        "started": "2026-11-29T20:00:00+00:00",
        "verdict": Status.PASS,
        "stages": [Stage("inspect", Status.PASS), Stage("load", Status.PASS)],
        "transcripts": [
            Transcript(host="qemu-svm", order=order, status=status)
            for order, status in (cells or {"vendor-alone": Status.PASS}).items()
        ],
        "findings": [*findings],
    }
    return Record(**given | more)


def finding(status: Status = Status.FAIL, name: str = "load:leftover:slab/x:vendor-alone", **more: Any) -> Finding:
    return Finding(id=name, status=status, message="m", **more)


def rule(status: Status, answer: str, **more: Any) -> Finding:
    return Finding(id="inspect:rule:kvm:r", status=status, message="m", rule="r", module="kvm", answer=answer, **more)


def worse(before: Record, after: Record) -> tuple[Status, list[str]]:
    found = compare_records(before, after)
    return found["status"], [one["what"] for one in found["worse"]]


@pytest.mark.parametrize(
    ("before", "after", "status", "change"),
    [
        ((), (finding(),), Status.FAIL, "new"),
        ((), (finding(Status.ERROR),), Status.ERROR, "new"),
        ((), (finding(Status.DONE),), Status.PASS, "new"),
        ((), (finding(known="r"),), Status.PASS, "new"),
        ((finding(Status.ERROR),), (finding(),), Status.FAIL, "changed"),
        ((finding(),), (finding(Status.ERROR),), Status.PASS, "changed"),
        ((finding(known="r"),), (finding(expired="2026-01-01: r"),), Status.FAIL, "changed"),
        ((finding(**PLACE),), (), Status.PASS, "gone"),
    ],
    ids=["FAIL", "ERROR", "information", "known", "ERROR to FAIL", "FAIL to ERROR", "expired", "gone"],
)
def test_findings(before: tuple[Finding, ...], after: tuple[Finding, ...], status: Status, change: str) -> None:
    found = compare_records(record(*before), record(*after))
    assert (found["status"], [one["change"] for one in found["findings"]]) == (status, [change])


def test_the_same_is_no_difference() -> None:
    one = record(finding(**PLACE), rule(Status.FAIL, "violated", known="r"))
    found = compare_records(one, one)
    assert found["status"] == Status.PASS
    assert not any(found[key] for key in ("worse", "stages", "findings", "cells", "rules", "tools", "profile"))
    assert (found["same_findings"], found["same_cells"], found["same_rules"]) == (1, 1, 1)


def test_a_finding_is_not_gone_where_nobody_looked() -> None:
    before = record(finding(**PLACE), cells={"vendor-alone": Status.FAIL})
    found = compare_records(before, record(cells={"vendor-alone": Status.MISS}))
    assert [one["change"] for one in found["findings"]] == ["not looked for"]
    assert found["status"] == Status.MISS


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        (Status.PASS, Status.FAIL, Status.FAIL),
        (Status.PASS, Status.ERROR, Status.ERROR),
        (Status.PASS, Status.MISS, Status.MISS),
        (Status.PASS, Status.SKIP, Status.MISS),
        (Status.PASS, None, Status.MISS),
        (Status.FAIL, None, Status.MISS),
        (Status.ERROR, Status.FAIL, Status.FAIL),
        (None, Status.FAIL, Status.FAIL),
        (None, Status.ERROR, Status.PASS),
        (Status.SKIP, Status.MISS, Status.PASS),
        (Status.FAIL, Status.PASS, Status.PASS),
    ],
)
def test_cells(before: Status | None, after: Status | None, status: Status) -> None:
    """What was judged and is not any more does not pass; what nobody could judge before cannot get worse by that."""
    sides = [record(cells={"other": Status.PASS} | ({"o": one} if one else {})) for one in (before, after)]
    found = compare_records(*sides)
    assert found["status"] == status
    assert [one["order"] for one in found["cells"]] == ["o"]


def test_rules() -> None:
    proved, broken = rule(Status.PASS, "proved"), rule(Status.FAIL, "violated", witness=("w",))
    assert worse(record(proved), record(broken)) == (Status.FAIL, ["rule r: kvm: proved → violated"])
    assert worse(record(broken), record(proved)) == (Status.PASS, [])
    known = rule(Status.FAIL, "violated", known="k")
    assert worse(record(known), record(broken)) == (Status.FAIL, ["rule r: kvm: violated, known → violated"])
    assert worse(record(proved), record(known)) == (Status.PASS, [])
    unknown = rule(Status.ERROR, "unknown")
    assert worse(record(proved), record(unknown)) == (Status.ERROR, ["rule r: kvm: proved → unknown"])
    assert worse(record(proved), record()) == (Status.MISS, ["rule r: kvm: proved → not asked"])
    other_kernel = record(rules={"asked": 0, "answers": {}, "other_kernels": ["r"]})
    assert worse(record(proved), other_kernel) == (Status.PASS, [])


def test_a_run_that_did_not_come_to_its_end_does_not_pass() -> None:
    assert worse(record(), record(verdict=None))[0] == Status.ERROR


def test_each_host_by_itself() -> None:
    other = finding(host="bochs-vmx", order="vendor-alone")
    assert worse(record(finding(**PLACE)), record(finding(**PLACE), other)) == (
        Status.FAIL,
        ["changed finding load:leftover:slab/x:vendor-alone on bochs-vmx"],
    )
    moved = compare_records(record(finding(**PLACE)), record(other))
    assert changed_ids(moved) == ([other.id], [other.id]), "it came there, and is gone here"
    assert changed_ids(compare_records(record(finding(Status.MISS)), record(finding(Status.MISS)))) == ([], [])
    assert changed_ids(compare_records(record(), record(finding(Status.MISS)))) == ([], []), "a machine is to blame"


def test_a_stage_that_is_not_run_any_more() -> None:
    without = record(stages=[Stage("load", Status.PASS)])
    assert worse(record(), without) == (Status.MISS, ["stage inspect: PASS → not run"])
    assert worse(without, record()) == (Status.PASS, [])
    failed = record(stages=[Stage("inspect", Status.ERROR), Stage("load", Status.PASS)])
    assert worse(record(), failed)[0] == Status.ERROR


def test_where_it_was_looked_for() -> None:
    assert looked_for(finding(**PLACE), record())
    assert not looked_for(finding(host="bochs-vmx", order="vendor-alone"), record())
    assert not looked_for(finding(**PLACE), record(cells={"vendor-alone": Status.ERROR}))
    assert looked_for(rule(Status.FAIL, "violated"), record(rule(Status.PASS, "proved")))
    assert not looked_for(rule(Status.FAIL, "violated"), record(rule(Status.ERROR, "unknown")))
    assert not looked_for(rule(Status.FAIL, "violated"), record())
    broken = finding(name="build:error:a.c:x")
    for artifacts, told in (({"kvm.ko": "a"}, True), ({}, False)):
        assert looked_for(broken, record(stages=[Stage("build", Status.FAIL)], artifacts=artifacts)) == told


def test_what_it_was_made_with() -> None:
    before = record(tools={"gcc": "12", "pid": "1"}, profile_files={"default.toml": "a", "rules/kvm.toml": "b"})
    after = record(tools={"gcc": "14", "pid": "2"}, profile_files={"default.toml": "c"}, hosts={"h": "QEMU 9"})
    found = compare_records(before, after)
    assert found["tools"] == [
        {"name": "gcc", "before": "12", "after": "14"},
        {"name": "host h", "before": None, "after": "QEMU 9"},
    ]
    assert [one["name"] for one in found["profile"]] == ["default.toml", "rules/kvm.toml"]


SOURCE = """
void *kmem_cache_create(const char *, unsigned, unsigned, unsigned, void *);
__attribute__((section(".modinfo"), used)) static const char info[] = "name=m\\0vermagic=6.1.0 mod_unload";
__attribute__((section(".gnu.linkonce.this_module"), used)) char __this_module[64];
__attribute__((noinline, section(".init.text"))) void set_up(void) { kmem_cache_create("a_cache", 128, 0, 0, 0); }
__attribute__((section(".init.text"))) int init_module(void) { set_up(); return 0; }
"""
FLAGS = ["-c", "-r", "-O2", "-mcmodel=kernel", "-fno-pic", "-fno-pie", "-fno-asynchronous-unwind-tables"]


def run_with(source: str, config: str) -> Run:
    """A run that keeps a module of this text."""
    run = Run("gate", "")
    (run.folder / "artifacts").mkdir()
    (run.folder / "config").write_text(config)
    path = run.folder / "artifacts/m.ko"
    subprocess.run(["gcc", *FLAGS, "-x", "c", "-o", path, "-"], input=source.encode(), check=True)
    run.record.artifacts = {"m.ko": file_digest(path)}
    run.finish(Status.PASS)
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = run_with(SOURCE, "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=12\n")
    later = SOURCE.replace("128", "192").replace('noinline, section(".init.text")', "noinline")
    return before, run_with(later, "CONFIG_A=m\nCONFIG_C=12\n")


def test_objects_and_configuration(runs: tuple[Run, Run]) -> None:
    before, after = (run.record.id for run in runs)
    found = compare_runs(before, "latest")
    assert found["after"]["run"] == after
    assert found["caches"] == [{"module": "m", "cache": "a_cache", "before": [128], "after": [192]}]
    (module,) = found["modules"]
    assert [(one["name"], one["change"], one["section"]) for one in module["symbols"]] == [
        ("set_up", "moved", [".init.text", ".text"])
    ]
    assert found["config"] == [{"name": "A", "before": "y", "after": "m"}]
    assert found["status"] == Status.PASS
    stream = StringIO()
    render(found, stream)
    shown = stream.getvalue()
    assert "a_cache (m), bytes of an object: 128 → 192" in shown
    assert "set_up: .init.text → .text" in shown
    assert "A: y → m" in shown
    same = compare_runs(before, before)
    assert (same["modules_same"], same["modules"], same["caches"], same["config"]) == (True, None, [], [])


def test_modules_that_are_not_those_that_were_judged_are_not_compared(runs: tuple[Run, Run]) -> None:
    before, after = runs
    path = after.folder / "artifacts/m.ko"
    path.write_bytes(path.read_bytes() + b"x")
    found = compare_runs(before.record.id, after.record.id)
    assert found["modules"] is None
    assert found["modules_problem"] == f"{path}: is no longer what was judged"
    path.unlink()
    assert "No such file" in compare_runs(before.record.id, after.record.id)["modules_problem"]
