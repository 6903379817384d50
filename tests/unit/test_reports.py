"""Protects reports in the formats of others: their own readers take them, nothing reads like a pass that is none, and
nothing that a guest, a patch or a module says becomes markup, a result or a command of a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import junitparser
import kcidb_io
import pytest

from kbuild.cpus import Cpus
from kbuild.errors import UserError
from kbuild.outcome import Finding, Known, Status
from kbuild.record import HostFacts, Record
from kbuild.report import clean
from kbuild.report.junit import render_junit
from kbuild.report.kcidb import kcidb, render_kcidb
from kbuild.report.ktap import render_ktap
from kbuild.report.mail import WIDTH
from kbuild.report.text import render_text
from kbuild.report.write import FORMATS, read_format, read_reports, render_as, write
from kbuild.transcript import LogLine, StepResult, Transcript
from tests.unit.records import NOT_PRINTED, STOPPED, answer, failing, hostile, known, passing, record

# JUnit.


# What Jenkins' junit-10.xsd allows: attributes (those that must be there first), then children. Readers elsewhere take
# no more than that.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url", "group"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": ({"name"}, {"time", "classname", "group"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def junit(what: Record) -> ET.Element:
    """The document, held against the schema."""
    return valid_junit(render_junit(what))


def valid_junit(text: str) -> ET.Element:
    """The document, which keeps the schema."""
    root = ET.fromstring(text)
    for element in root.iter():
        must, may, children = SCHEMA[element.tag]
        assert must <= {*element.keys()} <= must | may, element.tag
        assert {child.tag for child in element} <= children, element.tag
        if element.tag == "testsuite":
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", element.get("timestamp", ""))
    return root


def test_junit_has_a_suite_for_each_host_and_a_case_for_each_order() -> None:
    skipped = Transcript(host="bochs-vmx", order="other", status=Status.SKIP, reason="it needs svm")
    missed = Transcript(host="bochs-vmx", order="lost", status=Status.MISS, reason="the emulator was killed")
    what = record(passing(), failing(), skipped, missed, verdict=Status.FAIL)
    properties = junit(what).findall("testsuite[@name='qemu-svm']/properties/property")
    said = {one.get("name"): one.get("value") for one in properties}["host"]
    assert said == "QEMU emulator version 7.2, CPU model EPYC,+svm, 1 CPU, 256 MB, emulated"
    suites = {suite.name: suite for suite in junitparser.JUnitXml.fromstring(render_junit(what))}
    assert [*suites] == ["stages", "qemu-svm", "bochs-vmx"]
    cases = {case.name: case for suite in suites.values() for case in suite}
    assert cases["vendor-alone"].is_passed
    (failure,) = cases["bad"].result
    assert isinstance(failure, junitparser.Failure)
    assert "kernel BUG" in failure.message
    assert "again: /p/scripts/inv load" in (failure.text or "")
    (error,) = cases["lost"].result
    assert isinstance(error, junitparser.Error)
    assert (error.type, error.message) == ("MISS", "the emulator was killed")
    (skip,) = cases["other"].result
    assert isinstance(skip, junitparser.Skipped)
    assert skip.message == "it needs svm"
    counts = {name: (suite.failures, suite.errors, suite.skipped) for name, suite in suites.items()}
    assert counts == {"stages": (0, 0, 0), "qemu-svm": (1, 0, 0), "bochs-vmx": (0, 1, 1)}


def test_junit_keeps_what_is_known_apart() -> None:
    broken = answer("kvm-intel", Status.FAIL, "violated", known="so it is")
    what = record(passing(), findings=[answer("kvm-amd"), broken])
    rules = {case.get("classname"): case for case in junit(what).findall("testsuite[@name='rules']/testcase")}
    assert not [*rules["rules.kvm-amd"]]
    (skip,) = rules["rules.kvm-intel"]
    assert skip.get("message") == "known: so it is"


@pytest.mark.parametrize("what", STOPPED.values(), ids=STOPPED)
def test_junit_never_passes_a_run_that_did_not(what: Record) -> None:
    root = junit(what)
    assert int(root.get("failures", "0")) + int(root.get("errors", "0")) > 0


def test_junit_of_a_run_that_passed_has_no_failure() -> None:
    root = junit(record(passing(), known(), findings=[*known().findings, answer("kvm-amd")]))
    assert (root.get("failures"), root.get("errors")) == ("0", "0")


# KTAP.


def ktap_results(text: str) -> Counter[str]:
    """Results as the specification has them (Documentation/dev-tools/ktap.rst): of what has no subtests."""
    headers = re.findall(r"^    ( *)# Subtest: (.*)$", text, re.MULTILINE)
    results = re.findall(r"^( *)(ok|not ok) \d+ (.*?)(?: # (SKIP)?.*)?$", text, re.MULTILINE)
    return Counter(f"{word} {skip}".strip() for indent, word, name, skip in results if (indent, name) not in headers)


def test_ktap_nests_steps_in_orders_in_hosts() -> None:
    text = render_ktap(record(passing(), failing()))
    lines = text.splitlines()
    assert lines[:2] == ["KTAP version 1", "1..2"]
    assert "    # Subtest: qemu-svm" in lines
    assert "        # Subtest: vendor-alone" in lines
    assert "        ok 1 1. load kvm_amd" in lines
    assert "        ok 2 2. smoke long-mode" in lines
    assert "        # | hello" in lines
    assert "        not ok 1 1. load kvm_amd # FAIL kernel BUG at a.c:1!" in lines
    assert "    not ok 2 bad # FAIL kernel BUG at a.c:1!" in lines
    assert "not ok 2 qemu-svm # FAIL" in lines


def test_ktap_counts_an_order_that_failed_as_a_whole() -> None:
    """kunit.py counts what has no subtests: an order whose steps all passed would be counted as one that passed."""
    whole = passing(status=Status.FAIL, reason="the log has a line that it must not have")
    assert ktap_results(render_ktap(record(whole)))["not ok"] == 1


def test_ktap_does_not_count_what_is_known() -> None:
    text = render_ktap(record(known()))
    assert "ok 1 1. check footprint # known: kvm_init() does not undo it" in text
    assert not ktap_results(text)["not ok"]


@pytest.mark.parametrize("what", STOPPED.values(), ids=STOPPED)
def test_ktap_never_passes_a_run_that_did_not(what: Record) -> None:
    assert ktap_results(render_ktap(what))["not ok"] > 0


def test_ktap_takes_no_result_from_a_log() -> None:
    text = render_ktap(hostile())
    assert all(re.match(r" *(#|ok|not ok|KTAP version 1$|1\.\.[1-9])", line) for line in text.splitlines())
    assert not re.search(r"^ *ok \d+ fine", text, re.MULTILINE)
    assert not re.search(r"^ *# Subtest: fine", text, re.MULTILINE)
    assert "reboot: System halted" not in text, "kunit.py would take the log for ended"


KUNIT: list[tuple[str, Record, dict[str, int]]] = [
    ("passed", record(passing(), known(), verdict=Status.PASS), {"passed": 6}),
    ("failed", record(passing(), failing()), {"passed": 5, "failed": 1}),
    ("whole", record(passing(status=Status.FAIL, reason="as a whole")), {"passed": 5, "failed": 1}),
    ("hostile", hostile(), {"passed": 6, "failed": 2, "skipped": 1}),
    ("says that it is skipped", record(failing("x # SKIP y")), {"passed": 3, "failed": 1}),
    ("killed", STOPPED["killed"], {"passed": 1, "failed": 1}),
    ("skipped", STOPPED["skipped"], {"passed": 3, "failed": 1, "skipped": 1}),
]


@pytest.mark.parametrize(("what", "counts"), [one[1:] for one in KUNIT], ids=[one[0] for one in KUNIT])
def test_the_kernels_own_parser_reads_ktap(
    kernel_sources: dict[str, Path], tmp_path: Path, what: Record, counts: dict[str, int]
) -> None:
    """tools/testing/kunit/kunit.py: three stages, then steps; its exit status is 1 where a test failed."""
    (tmp_path / "run.ktap").write_text(render_ktap(what))
    for series, source in kernel_sources.items():
        kunit = source / "tools/testing/kunit/kunit.py"
        argv: list[str | Path] = [sys.executable, "-B", kunit, "parse", tmp_path / "run.ktap"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        last = done.stdout.splitlines()[-1].partition("Ran ")[2]
        assert {word: int(count) for word, count in re.findall(r"(\w+): (\d+)", last)} == counts, series
        assert "[ERROR]" not in done.stdout
        assert done.returncode == (1 if counts.get("failed") else 0)


# KCIDB.


def test_kcidb_is_valid_and_has_each_test() -> None:
    what = record(
        passing(),
        failing(),
        known(),
        findings=[*failing().findings, *known().findings, answer("kvm-amd")],
        known_not_seen=[Known(finding="a:b:c:d", reason="it is so")],
    )
    data = kcidb(what, Path("/nowhere"))
    assert data["version"] == {"major": 5, "minor": 3}
    kcidb_io.schema.V5_3.validate(json.loads(render_kcidb(what, Path("/nowhere"))))
    tests = {test["path"]: test for test in data["tests"]}
    assert tests["kvm_kbuild.load.qemu-svm.vendor-alone"]["status"] == "PASS"
    assert tests["kvm_kbuild.load.qemu-svm.bad"]["status"] == "FAIL"
    assert "RIP: 0010:svm_init" in tests["kvm_kbuild.load.qemu-svm.bad"]["log_excerpt"]
    assert tests["kvm_kbuild.rules.kvm-amd.a-rule"]["status"] == "PASS"
    ids = {test["id"] for test in data["tests"]}
    assert len(ids) == len(data["tests"])
    present = {incident["present"]: incident for incident in data["incidents"]}
    assert present[True]["test_id"] == tests["kvm_kbuild.load.bochs-vmx.known"]["id"]
    assert present[False]["build_id"] == data["builds"][0]["id"]
    assert {one["issue_id"] for one in data["incidents"]} == {one["id"] for one in data["issues"]}


def test_findings_of_one_kind_in_a_module_are_tests_of_their_own() -> None:
    """KCIDB merges what has one id, and GitLab takes the first case of a name: a FAIL would be lost in a DONE."""
    leaks = [
        Finding(
            id=f"inspect:resource:kvm-intel:{cause}",
            rule="resource",
            module="kvm-intel",
            status=status,
            message=f"kvm-intel: {cause}",
        )
        for cause, status in (("slab/x", Status.FAIL), ("slab/y", Status.DONE))
    ]
    what = record(passing(), findings=leaks, verdict=Status.FAIL)
    rules = [one for one in kcidb(what, Path("/nowhere"))["tests"] if ".rules." in one["path"]]
    assert {one["id"].rpartition("/resource/")[2]: one["status"] for one in rules} == {
        "slab/x": "FAIL",
        "slab/y": "DONE",
    }
    names = [case.get("name") for case in junit(what).iter("testcase") if case.get("classname") == "rules.kvm-intel"]
    assert names == ["resource slab/x", "resource slab/y"]


@pytest.mark.parametrize("what", [*STOPPED.values(), hostile()], ids=[*STOPPED, "hostile"])
def test_kcidb_never_passes_a_run_that_did_not(what: Record) -> None:
    data = kcidb(what, Path("/nowhere"))
    kcidb_io.schema.V5_3.validate(data)
    assert {one["status"] for one in data["tests"] + data["builds"] if "status" in one} & {"FAIL", "ERROR", "MISS"}


def test_kcidb_names_the_commit_and_its_patches(tmp_path: Path) -> None:
    """The hash is `sha256sum *.patch | cut -c-64 | sha256sum`, as the schema says."""
    tree = {"asked": "/linux", "identity": "x", "version": "6.1", "commit": f"{'a' * 40} with changes"}
    (tmp_path / "tree.patch").write_text("one\n")
    (checkout,) = kcidb(record(passing(), tree=tree), tmp_path)["checkouts"]
    assert checkout["git_commit_hash"] == "a" * 40
    command = "sha256sum tree.patch | cut -c-64 | sha256sum | cut -c-64"
    digest = subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert checkout["patchset_hash"] == digest.strip()
    (plain,) = kcidb(record(passing(), tree=tree), tmp_path / "none")["checkouts"]
    assert plain["patchset_hash"] == ""


def test_kcidb_takes_an_origin_of_its_own_words_only() -> None:
    assert kcidb(record(passing()), Path("/"), "me_2")["builds"][0]["origin"] == "me_2"
    with pytest.raises(UserError, match="small letters"):
        kcidb(record(passing()), Path("/"), "Me!")


# Text.


def test_text_is_true_to_the_word() -> None:
    text = render_text(record(passing(), failing()), Path("/runs/r"))
    assert text.startswith("kvm-kbuild gate of debian:6.1: FAIL\n")
    assert "CPU model EPYC,+svm, 1 CPU, 256 MB" in text.replace("\n              ", " ")
    assert "PASS 1: vendor-alone" in text
    assert "FAIL 1: bad" in text
    assert "id: load:kernel-bug:kvm_amd:x" in text
    assert "    inv load --modules $RUN/artifacts --host qemu-svm --order bad\n" in text
    assert "Tested-by" not in text.replace("no ground for a Tested-by line", "")
    assert "bochs-vmx" not in text, "nothing was asked of it"


def test_text_says_how_many_allocations_failed() -> None:
    detail = {"over": "load", "allocation": "5", "site": "load_module/module_alloc"}
    step = StepResult(number=1, action="inject", errno="ENOMEM", status=Status.PASS, detail=detail)
    text = render_text(record(passing(order="faults@5", steps=[step])), Path("/runs/r"))
    assert "faults on qemu-svm: 1 failed, one at a time, at 1 call sites; the load\n    gave ENOMEM" in text


def test_text_testifies_to_the_hosts_on_which_an_order_passed() -> None:
    skipped = Transcript(host="bochs-vmx", order="a", status=Status.SKIP, reason="no vmx")
    text = render_text(record(passing(), skipped, verdict=Status.PASS), Path("/runs/r"))
    (line,) = (part for part in text.replace("\n  ", " ").splitlines() if part.startswith("Tested-by: "))
    assert "qemu-svm" in line
    assert "bochs-vmx" not in line


@pytest.mark.parametrize(
    ("cpus", "said"),
    [
        (Cpus.EMULATED, "All CPUs are emulated: nothing here ran on real hardware."),
        (Cpus.NESTED, "QEMU with KVM, on the CPU of the machine that it ran on: qemu-svm."),
        (Cpus.OWN, "Reached by SSH, with CPUs of their own: qemu-svm."),
    ],
)
def test_no_report_calls_a_cpu_what_it_is_not(cpus: Cpus, said: str) -> None:
    emulator = "root@lab7 by SSH" if cpus is Cpus.OWN else "QEMU emulator version 7.2"
    facts = HostFacts("x", "EPYC", 1, 256, ("amd", "svm"), cpus)
    what = record(passing(), verdict=Status.PASS, hosts={"qemu-svm": emulator}, machines={"qemu-svm": facts})
    text = " ".join(render_text(what, Path("/nowhere")).split())
    assert said in text
    every = [text, *(render_as(form, what, Path("/nowhere")) for form in ("html", "junit", "kcidb"))]
    for one in every:
        assert ("emulated" in one) == (cpus is Cpus.EMULATED)
        assert "lab7" not in one


def test_what_was_known_until_a_day_says_so() -> None:
    expired = answer("kvm-amd", Status.FAIL, "violated", expired="2026-01-01: nobody mended it")
    what = record(passing(), findings=[expired], verdict=Status.FAIL)
    for form in ("text", "junit", "html"):
        assert "was known until 2026-01-01: nobody mended it" in render_as(form, what, Path("/nowhere"))


@pytest.mark.parametrize("what", STOPPED.values(), ids=STOPPED)
def test_text_does_not_testify_to_a_run_that_did_not_pass(what: Record) -> None:
    assert "no ground for a Tested-by line" in render_text(what, Path("/r"))


def test_text_keeps_within_its_columns() -> None:
    long = failing("x" * 300 + " and\tso on")
    for what in (record(passing(), long), hostile(), *STOPPED.values()):
        text = render_text(what, Path("/runs/r"))
        assert max(map(len, text.splitlines())) <= WIDTH
        assert not NOT_PRINTED.search(text)


# All of them.


@pytest.mark.parametrize("form", FORMATS)
def test_reports_stay_small_whatever_a_guest_says(form: Any) -> None:
    """A record bounds each step's log; a report bounds what it repeats of it."""
    line = LogLine("A" * 500)
    logs = [StepResult(number=n, action="load", status=Status.PASS, log=[line] * 2500) for n in range(1, 6)]
    bad = failing("B" * (10 << 20))
    what = record(bad, *(passing(order=f"o@{number}", steps=logs) for number in range(20)))
    assert len(render_as(form, what, Path("/nowhere"))) < 12 << 20


@pytest.mark.parametrize("form", ["text", "html"])
def test_no_more_findings_are_told_than_anybody_reads(form: Any) -> None:
    many = [answer(f"module-{number}", Status.FAIL, f"violated {number}") for number in range(500)]
    skipped = [Transcript(host=f"host-{n}", order="a", status=Status.SKIP, reason="no svm") for n in range(1000)]
    text = render_as(form, record(*skipped, findings=many, verdict=Status.FAIL), Path("/nowhere"))
    assert re.search(r"And \d+ more, which are in the record", text)
    assert text.count("no svm") < 600


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("make", [hostile, record], ids=["hostile", "empty"])
def test_no_report_has_what_moves_a_terminal(form: Any, make: Callable[[], Record]) -> None:
    assert not NOT_PRINTED.search(render_as(form, make(), Path("/nowhere")))


def test_a_log_is_shown_from_both_ends() -> None:
    shown = [*clean.lines([str(number) for number in range(1000)], 100)]
    assert (shown[0], shown[-1], len(shown)) == ("0", "999", 101)
    assert "[… 900 more lines in the record]" in shown


def test_formats_and_files_are_checked_before_anything_is_done(tmp_path: Path) -> None:
    assert read_reports((f"html={tmp_path / 'a.html'}",)) == [("html", tmp_path / "a.html")]
    with pytest.raises(UserError, match="no such format; one of text"):
        read_format("pdf", "--format")
    with pytest.raises(UserError, match="write FORMAT=FILE"):
        read_reports(("html",))
    with pytest.raises(UserError, match="there is no folder"):
        read_reports((f"html={tmp_path / 'none/a.html'}",))


# Files.


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As root, a rename to /dev/null takes it away from everybody."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write("said", str(pipe))
    assert os.read(reader, 100) == b"said"
    os.close(reader)
    assert pipe.is_fifo()
    file.write_text("before")
    link.symlink_to(file)
    write("after", str(link))
    assert link.is_symlink()
    assert file.read_text() == "after"
    assert {one.name for one in tmp_path.iterdir()} == {"pipe", "link", "file"}
