"""Protects the page that a maintainer is shown: nothing is met that was not tested, what the base has too is nobody's,
the guilty patch is named, and the paragraph for the cover letter says no more than what is on record.
"""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest

from kbuild.bar.evidence import PARAMETERS, TESTS, Evidence
from kbuild.bar.points import points, verdict
from kbuild.bar.selftests import lost_tests
from kbuild.barrecord import (
    Area,
    BarRecord,
    BuildOutcome,
    Docs,
    Host,
    Met,
    Parameter,
    Patch,
    Point,
    TipRun,
    Touched,
    UnitTests,
)
from kbuild.cpus import Cpus
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status
from kbuild.record import HostFacts, Record, Stage
from kbuild.report.bar import render
from kbuild.report.letter import WIDTH, letter
from kbuild.seriesrecord import Entry, SeriesRecord
from kbuild.transcript import StepResult, Transcript

BASE, ONE, TWO = (letter_ * 40 for letter_ in "0ab")
MMU = "arch/x86/kvm/mmu/mmu.c"
MACHINES = {
    "qemu-svm": HostFacts("qemu", "EPYC,+svm", 1, 256, ("amd", "svm", "npt")),
    "bochs-vmx": HostFacts("bochs", "corei7_haswell_4770", 1, 256, ("intel", "vmx", "ept")),
}
HOSTS = [*MACHINES]
EMULATED = Cpus.EMULATED


def finding(name: str, status: Status = Status.FAIL, **more: Any) -> Finding:
    return Finding(id=name, status=status, message=f"what {name} says", **more)


def row(host: str, order: str, *findings: Finding, status: Status | None = None, **more: Any) -> Transcript:
    own = tuple(msgspec.structs.replace(one, host=host, order=order) for one in findings)
    status = status or (own[0].status if own else Status.PASS)
    return Transcript(host=host, order=order, status=status, findings=[*own], **more)


def run(name: str, *rows: Transcript, **more: Any) -> Record:
    fields: dict[str, Any] = {
        "task": "gate",
        "command": "inv gate",
        "started": "2026-11-30T00:00:00+00:00",
        "ended": "2026-11-30T00:01:00+00:00",
        "kernel": "6.1.192-kbuild",
        "artifacts": {"bzImage": "0"},
        "tree": {"version": "6.1.192"},
        "machines": MACHINES,
        "transcripts": [*rows],
        "findings": [one for each in rows for one in each.findings],
    }
    return Record(id=name, **{**fields, **more})


def steps(**parameters: str) -> list[StepResult]:
    """Of an order that loads a module, runs a guest and unloads it."""
    return [
        StepResult(number=1, action="load", module="kvm", status=Status.PASS, params=parameters),
        StepResult(number=2, action="smoke", status=Status.PASS, detail={"kind": "long-mode"}),
        StepResult(number=3, action="selftest", status=Status.PASS, detail={"test": "smm_test"}),
        StepResult(number=4, action="unload", module="kvm", status=Status.PASS),
    ]


def done(host: str, order: str, **parameters: str) -> Transcript:
    return row(host, order, steps=steps(**parameters))


def both(*orders: str) -> list[Transcript]:
    return [done(host, order) for host in HOSTS for order in orders]


class Case:
    """A series of two patches that meets the bar; tests make it worse."""

    def __init__(self) -> None:
        self.config = {"KVM_INTEL": "m", "KVM_AMD": "m", "KVM_WERROR": "y"}
        self.runs: dict[str, Record] = {
            name: run(name, *both("vendor-alone", "tdp-off")) for name in ("base", "one", "two")
        }
        entries = [
            Entry(id=BASE, subject="Linux 6.1", base=True, run="base", verdict=Status.PASS, status=Status.PASS),
            Entry(id=ONE, subject="KVM: one", run="one", verdict=Status.PASS, status=Status.PASS),
            Entry(id=TWO, subject="KVM: two", run="two", verdict=Status.PASS, status=Status.PASS),
        ]
        for entry in entries:
            entry.cells = {"build": Status.PASS, "inspect": Status.PASS, "qemu-svm": Status.PASS}
        self.series = SeriesRecord(id="s", key="k", command="inv bar", source="x", started="", entries=entries)
        self.record = BarRecord(
            id="x-bar",
            key="k",
            command="inv bar",
            source="main~2..main of ~/linux",
            profile="kvm-x86",
            started="",
            kernel="6.1.192",
            patches=[Patch(BASE, "Linux 6.1", base=True), Patch(ONE, "KVM: one"), Patch(TWO, "KVM: two")],
            titles={"modules": "KVM_INTEL=m KVM_AMD=m on x86_64 defconfig", "xen": "KVM_XEN=y"},
            musts=["modules"],
            tests=["selftests"],
            areas=["shadow paging"],
            touched=Touched(files=(MMU,), areas=(Area("shadow paging", (MMU,), ("tdp-off",), must=True),)),
            tools={"gcc": "gcc (Debian) 12.2.0", "clang": "Debian clang version 19.1.7", "ld": "GNU ld 2.40"},
            hosts=[
                Host("qemu-svm", "QEMU 7.2", "EPYC,+svm", ("amd", "svm", "npt"), EMULATED, 2, 2, 10, 0, 3),
                Host("bochs-vmx", "Bochs 2.7", "corei7_haswell_4770", ("intel", "vmx", "ept"), EMULATED, 2, 2, 9, 0, 4),
            ],
        )
        for patch in (BASE, ONE, TWO):
            self.built(patch, "modules", "gcc")
            self.built(patch, "modules", "clang")
            self.built(patch, "xen", "gcc")
        self.tested(TESTS, "two", *both("selftests"))

    def built(self, patch: str, build: str, compiler: str) -> BuildOutcome:
        outcome = BuildOutcome(
            patch=patch, build=build, compiler=compiler, status=Status.PASS, values={"KVM_WERROR": "y"}
        )
        self.record.builds.append(outcome)
        return outcome

    def build(self, patch: str, build: str, compiler: str = "gcc") -> BuildOutcome:
        key = (patch, build, compiler)
        return next(one for one in self.record.builds if (one.patch, one.build, one.compiler) == key)

    def tested(self, what: str, patch: str, *rows: Transcript) -> None:
        name = f"{what}-{patch}"
        self.runs[name] = run(name, *rows)
        self.record.runs.append(TipRun(what=what, patch={"base": BASE, "two": TWO}[patch], run=name, over=True))

    def points(self) -> dict[str, Point]:
        def read(name: str) -> Record:
            if name not in self.runs:
                raise UserError("none")
            return self.runs[name]

        self.record.points = points(Evidence(self.record, self.series, read, lambda _: self.config))
        self.record.verdict = verdict(self.record.points)
        return {one.id: one for one in self.record.points}

    def page(self) -> str:
        self.points()
        out = io.StringIO()
        render(self.record, out)
        return out.getvalue()

    def letter(self) -> str:
        """In one line, so that it can be searched."""
        self.points()
        text = letter(self.record)
        assert all(len(line) <= WIDTH for line in text.splitlines())
        return " ".join(text.split())


@pytest.fixture
def case() -> Case:
    return Case()


def test_what_was_tested_is_met_and_what_was_not_is_not(case: Case) -> None:
    found = case.points()
    assert {name for name, one in found.items() if one.outcome == Met.MET} == {
        "build",
        "build:modules-gcc",
        "build:modules-clang",
        "build:xen-gcc",
        "series",
        "vendors",
        "area:shadow paging",
        "selftests",
    }
    assert found["kvm-unit-tests"].outcome == Met.NOT_TESTED
    assert found["parameters"].outcome == found["htmldocs"].outcome == Met.NO_CONCERN
    assert case.record.verdict == Status.PASS


def test_the_letter_says_what_is_on_record(case: Case) -> None:
    text = case.letter()
    assert text.startswith('Based on Linux 6.1.192, 000000000000 ("Linux 6.1").')
    assert (
        "Each of the 2 patches builds without a warning in KVM as KVM_INTEL=m KVM_AMD=m KVM_WERROR=y with gcc." in text
    )
    assert "KVM_INTEL=m KVM_AMD=m on x86_64 defconfig (gcc and clang); KVM_XEN=y (gcc)." in text
    for tool in case.record.tools.values():
        assert tool in text
    assert "in emulators, on no hardware: qemu-svm (QEMU 7.2, CPU EPYC,+svm: AMD, SVM with NPT)" in text
    assert "bochs-vmx (Bochs 2.7, CPU corei7_haswell_4770: Intel, VMX with EPT)" in text
    assert "10 passed, 0 failed, 3 skipped on qemu-svm; 9 passed, 0 failed, 4 skipped on bochs-vmx" in text
    assert "Not tested: KVM-unit-tests (no checkout was given (--kvm-unit-tests DIR)); real hardware." in text
    assert "NOT MET" not in text
    assert "debug" not in text, "no such kernel was loaded"


def test_the_letter_says_which_cpus_are_real(case: Case) -> None:
    """A machine that is reached by SSH is no emulator; nor is QEMU with KVM, and neither is where it is anybody's."""
    amd, intel = case.record.hosts
    own = msgspec.structs.replace(amd, id="epyc", emulator="root@lab7 by SSH", cpu="", cpus_are=Cpus.OWN)
    nested = msgspec.structs.replace(intel, id="qemu-kvm-vmx", cpus_are=Cpus.NESTED)
    case.record.hosts = [own, nested, intel]
    text = case.letter()
    assert "Loaded on machines of their own, reached by SSH: epyc (AMD, SVM with NPT); in QEMU with KVM" in text
    assert "on the CPU that it ran on: qemu-kvm-vmx (Bochs 2.7, CPU corei7_haswell_4770: Intel, VMX with EPT);" in text
    assert "; in emulators, on no hardware: bochs-vmx (" in text
    assert "lab7" not in text
    assert text.endswith("; real hardware of Intel.")
    case.record.hosts = [own, msgspec.structs.replace(own, gives=intel.gives)]
    assert "real hardware" not in case.letter()
    for host, gives, said in (
        (intel, ("intel", "vmx"), "Intel, VMX without two-dimensional paging"),
        (intel, ("intel",), "Intel, without virtualization"),
        (own, ("amd", "svm"), "epyc (AMD, SVM)"),
    ):
        case.record.hosts = [msgspec.structs.replace(host, gives=gives)]
        assert said in case.letter()
    case.record.hosts = [msgspec.structs.replace(own, passed=0), intel]
    assert case.letter().endswith("; real hardware.")


def test_a_configuration_that_fails_names_the_first_patch_that_brings_it(case: Case) -> None:
    for patch in (ONE, TWO):
        broken = case.build(patch, "xen")
        broken.status, broken.findings = Status.FAIL, [finding("build:error:arch/x86/kvm/xen.c:x")]
    point = case.points()["build:xen-gcc"]
    assert (point.outcome, point.patches) == (Met.NOT_MET, [ONE])
    assert case.record.verdict == Status.FAIL
    text = case.letter()
    assert text.startswith(
        'NOT MET: each patch builds with KVM_XEN=y, gcc (KVM\'s objects): patch 1, aaaaaaaaaaaa ("KVM: one").'
    )
    assert "KVM_XEN=y (gcc)." not in text.partition("Based on")[2]
    assert "patch: aaaaaaaaaaaa KVM: one" in case.page()


def test_what_the_base_does_not_build_either_is_no_patch_s(case: Case) -> None:
    for patch in (BASE, ONE, TWO):
        broken = case.build(patch, "modules", "clang")
        broken.status, broken.findings = Status.FAIL, [finding("build:error:x:y")]
        broken.reason = "what build:error:x:y says"
    point = case.points()["build:modules-clang"]
    assert (point.outcome, point.patches) == (Met.NOT_TESTED, [])
    assert "neither does what it stands on (what build:error:x:y says)" in point.why
    assert case.record.verdict == Status.ERROR, "a must that was not tested"
    case.build(TWO, "modules", "clang").findings.append(finding("build:error:x:z"))
    point = case.points()["build:modules-clang"]
    assert (point.outcome, point.patches) == (Met.NOT_MET, [TWO])


def test_a_patch_that_mends_a_configuration_that_the_base_does_not_build(case: Case) -> None:
    broken = case.build(BASE, "xen")
    broken.status, broken.findings, broken.reason = Status.FAIL, [finding("build:error:x:y")], "x"
    assert case.points()["build:xen-gcc"].outcome == Met.MET


def test_a_configuration_that_there_is_not_is_not_tested(case: Case) -> None:
    for patch in (BASE, ONE, TWO):
        none = case.build(patch, "xen")
        none.status, none.reason = Status.SKIP, "KVM_XEN: no such symbol"
    point = case.points()["build:xen-gcc"]
    assert (point.outcome, point.why) == (Met.NOT_TESTED, "KVM_XEN: no such symbol")
    assert case.record.verdict == Status.PASS, "this one is no must"
    assert "KVM_XEN=y, gcc (KVM's objects) (KVM_XEN: no such symbol)" in case.letter()


def test_a_patch_that_was_not_built_is_not_said_to_build(case: Case) -> None:
    case.record.builds.remove(case.build(TWO, "xen"))
    point = case.points()["build:xen-gcc"]
    assert (point.outcome, point.why) == (Met.NOT_TESTED, "bbbbbbbbbbbb: it was not built")


@pytest.mark.parametrize("status", [Status.MISS, Status.ERROR])
def test_a_build_that_the_machine_failed_at_is_not_tested(case: Case, status: Status) -> None:
    """Be it that the base has it too: nobody has seen what the compiler says of the patch."""
    for patch in (BASE, ONE, TWO):
        full = case.build(patch, "modules")
        full.status, full.reason = status, "/build: no space left"
        full.findings = [finding("build:full:x:y", status)]
    point = case.points()["build:modules-gcc"]
    assert (point.outcome, point.patches) == (Met.NOT_TESTED, [])
    assert "aaaaaaaaaaaa: /build: no space left" in point.why
    assert case.record.verdict == Status.ERROR
    assert "KVM_INTEL=m KVM_AMD=m on x86_64 defconfig (gcc" not in case.letter()


@pytest.mark.parametrize("status", [Status.MISS, Status.ERROR, Status.SKIP, None])
def test_a_kernel_that_the_machine_did_not_build_is_not_tested(case: Case, status: Status | None) -> None:
    entry = case.series.entries[1]
    entry.cells = {"build": status} if status else {}
    entry.status, entry.reason = status or Status.MISS, "/build: no space left"
    point = case.points()["build"]
    assert (point.outcome, point.why) == (Met.NOT_TESTED, "aaaaaaaaaaaa: /build: no space left")
    assert case.record.verdict == Status.ERROR
    assert "builds without a warning" not in case.letter()


def test_a_kernel_that_was_built_in_another_way_is_not_the_one_that_is_asked_for(case: Case) -> None:
    case.config["KVM_WERROR"] = "n"
    point = case.points()["build"]
    assert point.outcome == Met.NOT_TESTED
    assert point.why.startswith("aaaaaaaaaaaa: it was built with KVM_WERROR=n")


def test_a_patch_that_breaks_what_an_earlier_one_mended_is_named(case: Case) -> None:
    for patch in (BASE, TWO):
        broken = case.build(patch, "xen")
        broken.status, broken.findings, broken.reason = Status.FAIL, [finding("build:error:x:y")], "x"
    point = case.points()["build:xen-gcc"]
    assert (point.outcome, point.patches) == (Met.NOT_MET, [TWO])


def test_a_failure_without_a_finding_is_the_first_patch_s_or_the_base_s(case: Case) -> None:
    for patch in (ONE, TWO):
        broken = case.build(patch, "xen")
        broken.status, broken.reason = Status.FAIL, "make failed"
    point = case.points()["build:xen-gcc"]
    assert (point.outcome, point.patches) == (Met.NOT_MET, [ONE])
    broken = case.build(BASE, "xen")
    broken.status, broken.reason = Status.FAIL, "make failed"
    point = case.points()["build:xen-gcc"]
    assert (point.outcome, point.patches) == (Met.NOT_TESTED, [])


def test_whose_failure_it_is_cannot_be_told_without_a_base(case: Case) -> None:
    case.build(BASE, "xen").status = Status.MISS
    broken = case.build(ONE, "xen")
    broken.status, broken.findings = Status.FAIL, [finding("build:error:x:y")]
    point = case.points()["build:xen-gcc"]
    assert (point.outcome, point.patches) == (Met.NOT_MET, [])
    assert "cannot be told" in point.why


def test_a_patch_that_was_skipped_is_not_forgotten_where_the_base_fails(case: Case) -> None:
    base, one = case.build(BASE, "xen"), case.build(ONE, "xen")
    base.status, base.findings, base.reason = Status.FAIL, [finding("build:error:x:y")], "x"
    one.status, one.reason = Status.SKIP, "KVM_XEN: depends on what is n"
    point = case.points()["build:xen-gcc"]
    assert (point.outcome, point.why) == (Met.NOT_TESTED, "aaaaaaaaaaaa: KVM_XEN: depends on what is n")


def test_a_configuration_of_which_nothing_is_on_record_is_not_forgotten(case: Case) -> None:
    case.record.builds = [one for one in case.record.builds if one.build != "modules"]
    assert case.points()["build:modules"].outcome == Met.NOT_TESTED
    assert case.record.verdict == Status.ERROR


def test_the_patch_that_a_series_blames_is_named(case: Case) -> None:
    entry = case.series.entries[1]
    entry.status, entry.blamed = Status.FAIL, ["inspect:rule:kvm-amd:r"]
    point = case.points()["series"]
    assert (point.outcome, point.patches) == (Met.NOT_MET, [ONE])
    assert case.points()["build"].outcome == Met.MET
    entry.blamed, entry.cells["build"] = ["build:error:x:y"], Status.FAIL
    found = case.points()
    assert found["series"].outcome == Met.NOT_TESTED, "nothing of it was loaded"
    assert (found["build"].outcome, found["build"].patches) == (Met.NOT_MET, [ONE])


def test_an_error_behind_the_first_of_a_broken_base_may_be_the_base_s(case: Case) -> None:
    base, one, two = case.series.entries
    for entry in (base, two):
        entry.status, entry.cells["build"] = Status.FAIL, Status.FAIL
    two.blamed = ["build:error:x:y"]
    point = case.points()["build"]
    assert (point.outcome, point.patches, point.why) == (Met.NOT_MET, [TWO], ""), "the patch before it builds"
    one.status, one.cells["build"], one.blamed = Status.FAIL, Status.FAIL, ["build:error:x:z"]
    point = case.points()["build"]
    assert (point.outcome, point.patches) == (Met.NOT_MET, [ONE, TWO])
    assert "it may have these, too" in point.why


def test_a_patch_that_makes_it_worse_without_a_finding_is_named(case: Case) -> None:
    entry = case.series.entries[1]
    entry.status, entry.reason = Status.FAIL, "qemu-svm, guests: PASS → FAIL"
    point = case.points()["series"]
    assert (point.outcome, point.patches) == (Met.NOT_MET, [ONE])
    assert point.lines == ["aaaaaaaaaaaa: qemu-svm, guests: PASS → FAIL"]


@pytest.mark.parametrize("status", [Status.SKIP, Status.MISS, Status.ERROR, None])
def test_a_patch_that_was_not_judged_is_not_forgotten(case: Case, status: Status | None) -> None:
    entry = case.series.entries[1]
    entry.status, entry.reason = status, "each order was skipped"
    point = case.points()["series"]
    assert point.outcome == Met.NOT_TESTED
    assert point.why.startswith("aaaaaaaaaaaa could not be judged: ")


@pytest.mark.parametrize("status", [Status.MISS, Status.ERROR])
@pytest.mark.parametrize("found", [True, False])
def test_what_neither_the_patches_nor_the_base_could_be_asked_is_not_tested(
    case: Case, status: Status, found: bool
) -> None:
    findings = [finding("load:no-answer:kvm:x", status)] if found else []
    gone = row("qemu-svm", "vendor-alone", *findings, status=status, reason="what load:no-answer:kvm:x says")
    for name in ("base", "one", "two"):
        case.runs[name] = run(name, gone, done("bochs-vmx", "vendor-alone"), *both("tdp-off", "guests"))
    points = case.points()
    for name in ("series", "vendors"):
        assert points[name].outcome == Met.NOT_TESTED, name
    assert points["area:shadow paging"].outcome == Met.MET
    (line,) = points["vendors"].lines
    assert line == "qemu-svm, vendor-alone: what load:no-answer:kvm:x says; of the base it cannot be told either"
    assert case.record.verdict == Status.ERROR


def test_a_crash_that_the_base_has_elsewhere_only_is_the_series_fault(case: Case) -> None:
    """The id of a crash is the same in each order: the base passes the one that crashes with the last patch."""
    crash = finding("load:kernel-bug:kvm:x")
    case.runs["base"] = run("base", row("qemu-svm", "guests", crash), *both("vendor-alone", "tdp-off"))
    rest = [done("bochs-vmx", "vendor-alone"), *both("tdp-off")]
    case.runs["two"] = run("two", row("qemu-svm", "vendor-alone", crash), done("qemu-svm", "guests"), *rest)
    assert case.points()["vendors"].outcome == Met.NOT_MET


def test_what_was_an_error_and_is_a_failure_is_new(case: Case) -> None:
    for name, status in (("base", Status.ERROR), ("two", Status.FAIL)):
        failed = row("qemu-svm", "vendor-alone", finding("load:x:y:z", status))
        case.runs[name] = run(name, failed, *both("tdp-off", "guests"))
    assert case.points()["vendors"].outcome == Met.NOT_MET


def test_a_machine_that_failed_where_the_base_passes_blames_nobody(case: Case) -> None:
    gone = row("qemu-svm", "vendor-alone", finding("load:no-answer:kvm:x", Status.MISS))
    case.runs["two"] = run("two", gone, *both("tdp-off", "guests"))
    assert case.points()["vendors"].outcome == Met.NOT_TESTED


def test_a_vendor_on_which_nothing_passes_was_not_tested(case: Case) -> None:
    """A failure of the base's own does not count; but what comes behind it was not run."""
    failed = row("qemu-svm", "vendor-alone", finding("load:x:y:z"))
    for name in ("base", "two"):
        case.runs[name] = run(name, failed, done("bochs-vmx", "vendor-alone"), *both("tdp-off"))
    point = case.points()["vendors"]
    assert point.outcome == Met.NOT_TESTED
    assert "not on amd: nothing of that passed there" in point.why


def test_modules_that_ran_no_guest_are_not_said_to(case: Case) -> None:
    case.runs["two"] = run("two", *(row(host, "vendor-alone") for host in HOSTS), *both("tdp-off"))
    assert case.points()["vendors"].outcome == Met.NOT_TESTED


def test_a_run_that_did_not_come_to_its_end_is_not_tested(case: Case) -> None:
    for stopped in ({"error": "a disk is full"}, {"ended": None}, {"interrupted": "load"}):
        case.runs["two"] = run("two", *both("vendor-alone", "tdp-off"), **stopped)
        points = case.points()
        for name in ("series", "vendors", "area:shadow paging"):
            assert points[name].outcome == Met.NOT_TESTED, name


def test_a_failure_that_the_base_has_too_is_shown_as_such(case: Case) -> None:
    failed = row("qemu-svm", "vendor-alone", finding("load:x:y:z"))
    rows = [failed, *both("tdp-off", "guests"), done("bochs-vmx", "vendor-alone")]
    case.runs["two"] = run("two", *rows)
    point = case.points()["vendors"]
    assert point.outcome == Met.NOT_MET
    case.runs["base"] = run("base", *rows)
    point = case.points()["vendors"]
    assert point.outcome == Met.MET
    assert point.lines == ["the base has it too: what load:x:y:z says"]
    assert "The base has it too: what load:x:y:z says." in case.letter()


def test_a_machine_that_failed_is_no_pass(case: Case) -> None:
    gone = row("qemu-svm", "vendor-alone", status=Status.MISS, reason="the emulator was killed")
    case.runs["two"] = run("two", gone, row("bochs-vmx", "vendor-alone"), *both("tdp-off"))
    point = case.points()["vendors"]
    assert (point.outcome, point.lines) == (Met.NOT_TESTED, ["qemu-svm, vendor-alone: the emulator was killed"])


def test_another_kernel(case: Case) -> None:
    case.tested("debug", "two", *both("vendor-alone"))
    assert case.points()["flavour:debug"].outcome == Met.MET
    assert "Loads with the debug kernel (last patch): 1 of 1 passed on qemu-svm, 1 of 1 passed on bochs-vmx." in (
        case.letter()
    )
    stages = [Stage("build", Status.FAIL, reason="x.c:1: error: y")]
    case.runs["debug-two"] = run("debug-two", artifacts={}, stages=stages)
    point = case.points()["flavour:debug"]
    why = "it does not build; whether the base does is not known: x.c:1: error: y"
    assert (point.outcome, point.why) == (Met.NOT_TESTED, why)
    case.tested("debug", "base")
    case.runs["debug-base"] = case.runs["debug-two"]
    point = case.points()["flavour:debug"]
    assert (point.outcome, point.why) == (Met.NOT_TESTED, "the base does not build either: x.c:1: error: y")
    case.runs["debug-base"] = run("debug-base", *both("vendor-alone"))
    point = case.points()["flavour:debug"]
    assert (point.outcome, point.why) == (Met.NOT_MET, "it does not build, and the base does: x.c:1: error: y")
    case.record.runs = [TipRun(what="debug", patch=TWO, over=True, reason="PROVE_LOCKING: depends on what is n")]
    point = case.points()["flavour:debug"]
    assert (point.outcome, point.why) == (Met.NOT_TESTED, "PROVE_LOCKING: depends on what is n")


def test_tdp_off_that_was_not_run_is_a_must_that_is_missing(case: Case) -> None:
    case.runs["two"] = run("two", *both("vendor-alone"))
    found = case.points()
    assert found["area:shadow paging"].outcome == Met.NOT_TESTED
    assert case.record.verdict == Status.ERROR


def test_each_order_of_an_area_is_run_on_each_vendor(case: Case) -> None:
    assert case.record.touched is not None
    (area,) = case.record.touched.areas
    area = msgspec.structs.replace(area, orders=("tdp-off", "guests-tdp-off@x"))
    case.record.touched = msgspec.structs.replace(case.record.touched, areas=(area,))
    point = case.points()["area:shadow paging"]
    assert point.outcome == Met.NOT_TESTED
    assert "guests-tdp-off@x was not among the orders that were asked for" in point.why
    every = both("vendor-alone", "tdp-off", "guests-tdp-off@x")
    case.runs["two"] = run("two", *every)
    assert case.points()["area:shadow paging"].outcome == Met.MET
    for left in ("tdp-off", "guests-tdp-off@x"):
        skipped = row("bochs-vmx", left, status=Status.SKIP, reason="it needs ept")
        rest = [one for one in every if (one.host, one.order) != ("bochs-vmx", left)]
        case.runs["two"] = run("two", skipped, *rest)
        point = case.points()["area:shadow paging"]
        assert point.outcome == Met.NOT_TESTED
        assert f"{left} not on intel: it needs ept" in point.why
    assert case.record.verdict == Status.ERROR


def test_one_vendor_alone_is_not_both(case: Case) -> None:
    skipped = row("bochs-vmx", "vendor-alone", status=Status.SKIP, reason="bochs is not installed")
    case.runs["two"] = run("two", done("qemu-svm", "vendor-alone"), done("qemu-svm", "tdp-off"), skipped)
    point = case.points()["vendors"]
    assert point.outcome == Met.NOT_TESTED
    assert point.why == "1 of 1 passed on qemu-svm; not on intel: bochs is not installed"


def selftests(status: Status, *findings: Finding) -> Transcript:
    """One that ends so, and one that passes."""
    tests = {"smm_test": status, "state_test": Status.PASS}
    steps = [
        StepResult(number=number, action="selftest", status=said, detail={"test": name})
        for number, (name, said) in enumerate(tests.items(), 2)
    ]
    return row("qemu-svm", "selftests", *findings, steps=steps)


def test_a_selftest_that_the_base_passes_is_the_series_fault(case: Case) -> None:
    """Where nobody has seen a test pass on a host, its failure is an ERROR; the base's pass is such a sight."""
    case.record.runs.clear()
    failed = finding("load:selftest:smm_test:selftests/2-selftest", Status.ERROR)
    case.tested(TESTS, "two", selftests(Status.ERROR, failed), done("bochs-vmx", "selftests"))
    assert case.points()["selftests"].outcome == Met.NOT_TESTED
    case.tested(TESTS, "base", selftests(Status.PASS), done("bochs-vmx", "selftests"))
    assert case.points()["selftests"].outcome == Met.NOT_MET
    case.runs[f"{TESTS}-base"] = run("b", selftests(Status.ERROR, failed))
    assert case.points()["selftests"].outcome == Met.NOT_TESTED, "of neither can anything be told"
    known = finding("load:selftest:smm_test:selftests/2-selftest")
    for name in ("two", "base"):
        case.runs[f"{TESTS}-{name}"] = run(name, selftests(Status.FAIL, known), done("bochs-vmx", "selftests"))
    point = case.points()["selftests"]
    assert (point.outcome, point.lines) == (Met.MET, [f"the base has it too: {known.message}"])


def test_a_value_that_no_module_was_loaded_with_was_not_tried(case: Case) -> None:
    parameters = tuple(Parameter(module, name, "bool", MMU, values=(1, 0)) for module, name in
                       (("kvm", "tdp_mmu"), ("kvm-intel", "ept")))  # fmt: skip
    assert case.record.touched is not None
    case.record.touched = msgspec.structs.replace(case.record.touched, parameters=parameters)
    case.tested(PARAMETERS, "two", *(done(host, f"p@{one}", tdp_mmu=one) for host in HOSTS for one in "10"))
    point = case.points()["parameters"]
    assert point.outcome == Met.NOT_TESTED
    assert [line for line in point.lines if "tried" in line] == [
        "tried: kvm.tdp_mmu=1,0", "not tried: kvm_intel.ept (not with 1, 0)"
    ]  # fmt: skip
    assert "tried: kvm.tdp_mmu=1,0." in case.letter()


def skipping(reason: str, host: str = "qemu-svm") -> Transcript:
    """The tests of a host, of which one is skipped."""
    step = StepResult(
        number=5, action="selftest", status=Status.SKIP, detail={"test": "lost"}, reason=f"selftest lost: {reason}"
    )
    return row(host, "selftests", steps=[*steps(), step])


def test_a_test_that_the_series_makes_skip_is_not_one_that_passes(case: Case) -> None:
    case.record.runs.clear()
    case.tested(TESTS, "two", skipping("it skipped itself: no such capability"), done("bochs-vmx", "selftests"))
    assert case.points()["selftests"].outcome == Met.MET, "it may always have done so"
    assert [*lost_tests(case.runs[f"{TESTS}-two"], None)], "so the base is asked"
    lost = StepResult(number=5, action="selftest", status=Status.PASS, detail={"test": "lost"})
    case.tested(TESTS, "base", row("qemu-svm", "selftests", steps=[*steps(), lost]))
    point = case.points()["selftests"]
    assert point.outcome == Met.NOT_TESTED
    assert "lost passes on qemu-svm with the base, and skips itself now" in point.why
    case.runs[f"{TESTS}-base"] = run("b", skipping("it skipped itself: no such capability"))
    assert case.points()["selftests"].outcome == Met.MET


def test_a_test_that_does_not_compile_is_the_series_fault_unless_the_base_s_does_not_either(case: Case) -> None:
    why = "it does not compile: tools/x.c:1: error: y"
    case.record.runs.clear()
    case.tested(TESTS, "two", skipping(why), done("bochs-vmx", "selftests"))
    assert case.points()["selftests"].outcome == Met.NOT_TESTED
    for base, outcome in ((done("qemu-svm", "selftests"), Met.NOT_MET), (skipping(why), Met.MET)):
        case.record.runs = [one for one in case.record.runs if one.patch != BASE]
        case.tested(TESTS, "base", base)
        point = case.points()["selftests"]
        assert point.outcome == outcome
        assert (f"qemu-svm, lost: {why}" in point.lines) == (outcome == Met.NOT_MET)


def test_a_series_that_breaks_the_build_of_every_test_is_told_so(case: Case) -> None:
    why = "it does not compile: tools/x.c:1: error: y"
    case.record.runs.clear()
    skipped = [row(host, "selftests", status=Status.SKIP, reason=f"selftest smm_test: {why}") for host in HOSTS]
    case.tested(TESTS, "two", *skipped)
    assert [*lost_tests(case.runs[f"{TESTS}-two"], None)], "so the base is asked"
    case.tested(TESTS, "base", *both("selftests"))
    point = case.points()["selftests"]
    assert (point.outcome, point.lines) == (Met.NOT_MET, [f"{host}, smm_test: {why}" for host in HOSTS])


def test_a_test_that_the_series_brings_is_run(case: Case) -> None:
    kvm = "tools/testing/selftests/kvm"
    paths = (f"{kvm}/x86/smm_test.c", f"{kvm}/lib/x86/processor.c", f"{kvm}/include/x.h", f"{kvm}/arm64/y.c")
    case.record.touched = Touched(tests=paths)
    assert case.points()["selftests"].outcome == Met.MET
    case.record.touched = Touched(tests=(*paths, f"{kvm}/new_test.c"))
    point = case.points()["selftests"]
    assert point.outcome == Met.NOT_TESTED
    assert "new_test, which the series changes: not run" in point.why


def test_a_profile_without_areas_says_nothing_of_what_is_touched(case: Case) -> None:
    case.record.touched, case.record.areas = Touched(files=(MMU,)), []
    point = case.points()["area"]
    assert (point.outcome, point.why) == (Met.NOT_TESTED, "the profile has no [[bar.area]]")
    case.record.areas = ["shadow paging"]
    assert case.points()["area"].outcome == Met.NO_CONCERN


def test_the_letter_says_no_more_of_the_configuration_than_is_on_record(case: Case) -> None:
    case.build(ONE, "xen").values["KVM_WERROR"] = "n"
    assert "KVM objects build as well: KVM_INTEL=m" in case.letter()


def test_parameters_that_nobody_gave_values_for_are_not_tried(case: Case) -> None:
    assert case.record.touched is not None
    tried = Parameter("kvm", "tdp_mmu", "bool", MMU, values=(1, 0))
    parameters = (tried, Parameter("kvm-intel", "ple_gap", "uint", "vmx.c"))
    case.record.touched = msgspec.structs.replace(case.record.touched, parameters=parameters)
    runs = {value: f"touched-parameters@kvm.tdp_mmu={value}" for value in "10"}
    case.tested(PARAMETERS, "two", *(done(host, runs[one], tdp_mmu=one) for host in HOSTS for one in runs))
    point = case.points()["parameters"]
    assert point.outcome == Met.NOT_TESTED
    assert "tried: kvm.tdp_mmu=1,0" in point.lines
    assert any("kvm_intel.ple_gap (uint: give values in the profile's [bar.values])" in line for line in point.lines)
    text = case.letter()
    assert "1 parameter not tried; tried: kvm.tdp_mmu=1,0." in text
    assert "Not tested: parameters kvm_intel.ple_gap (uint: give values in the profile's [bar.values]);" in text
    case.record.touched = msgspec.structs.replace(case.record.touched, parameters=(tried,))
    assert case.points()["parameters"].outcome == Met.MET


@pytest.mark.parametrize(
    ("units", "outcome"),
    [
        (UnitTests(passed=3), Met.MET),
        (UnitTests(passed=3, skipped=1), Met.MET),
        (UnitTests(skipped=80), Met.NOT_TESTED),
        (UnitTests(), Met.NOT_TESTED),
        (UnitTests(reason="no /dev/kvm"), Met.NOT_TESTED),
        (UnitTests(passed=3, failed=["a: b"]), Met.NOT_MET),
        (UnitTests(passed=3, reason="it did not come to its end"), Met.NOT_TESTED),
    ],
)
def test_unit_tests(case: Case, units: UnitTests, outcome: Met) -> None:
    case.record.units = units
    assert case.points()["kvm-unit-tests"].outcome == outcome


@pytest.mark.parametrize(
    ("docs", "outcome"),
    [
        (None, Met.NOT_TESTED),
        (Docs(reason="sphinx-build is not installed"), Met.NOT_TESTED),
        (Docs(folders=("virt/kvm",), sphinx="sphinx-build 5.3.0", before=["a:1: WARNING: x"]), Met.MET),
        (Docs(folders=("virt/kvm",), new=["a:1: WARNING: x"]), Met.NOT_MET),
    ],
)
def test_documentation(case: Case, docs: Docs | None, outcome: Met) -> None:
    case.record.touched, case.record.docs = Touched(docs=("Documentation/virt/kvm/api.rst",)), docs
    assert case.points()["htmldocs"].outcome == outcome


def test_what_a_patch_or_a_guest_says_moves_nothing_on_a_terminal(case: Case) -> None:
    nasty = "\x1b[2J[red]\r\u202egone"
    case.record.source = nasty
    case.record.patches[1] = Patch(ONE, nasty, fixes=True)
    said = Finding(id="load:x:y:z", status=Status.FAIL, message=nasty)
    case.runs["two"] = run("two", row("qemu-svm", "vendor-alone", said), *both("tdp-off"))
    broken = case.build(ONE, "xen")
    broken.status, broken.findings = Status.FAIL, [Finding(id="build:error:x:y", status=Status.FAIL, message=nasty)]
    for text in (case.page(), case.letter()):
        assert not {"\x1b", "\r", "\u202e"} & {*text}
        assert "[red]" in text


def test_what_no_tool_can_tell_is_left_to_the_author(case: Case) -> None:
    assert "reproducer" not in case.points()
    case.record.patches[2] = Patch(TWO, "KVM: two", fixes=True)
    found = case.points()
    assert found["reproducer"].outcome == found["tests"].outcome == found["base"].outcome == Met.YOURS
    assert "git format-patch --base=000000000000" in found["base"].why
    case.record.base_from = "base-commit"
    assert case.points()["base"].outcome == Met.MET


def test_a_patch_that_does_not_apply(case: Case) -> None:
    case.record.patches.append(Patch("patch 3", "KVM: three"))
    case.series.entries.append(
        Entry(id="patch 3", subject="KVM: three", status=Status.FAIL, reason="does not apply", evidence=["error: x"])
    )
    point = case.points()["applies"]
    assert (point.outcome, point.patches, point.lines) == (Met.NOT_MET, ["patch 3"], ["error: x"])
    assert case.letter().startswith("NOT MET: the patches apply: patch 3")


def test_nothing_is_met_of_a_series_that_is_not_whole(case: Case) -> None:
    """Not even what is said of each patch: with the first that does not apply, the base alone would be left."""
    del case.record.patches[1:], case.series.entries[1:]
    case.record.patches.append(Patch("patch 1", "KVM: one"))
    case.record.touched = Touched()
    found = case.points()
    assert {one.outcome for name, one in found.items() if name not in ("applies", "base", "tests")} == {Met.NOT_TESTED}
    assert "builds" not in case.letter().partition("Not tested:")[0].partition("Based on")[2]


def test_what_was_refused_says_why(case: Case) -> None:
    parameters = (Parameter("kvm", "tdp_mmu", "bool", MMU, values=(1, 0)),)
    assert case.record.touched is not None
    case.record.touched = msgspec.structs.replace(case.record.touched, parameters=parameters)
    case.record.runs = [
        TipRun(what=what, patch=TWO, over=True, reason=f"{what}: refused") for what in (TESTS, PARAMETERS, "debug")
    ]
    found = case.points()
    for name, what in (("selftests", TESTS), ("parameters", PARAMETERS), ("flavour:debug", "debug")):
        assert (found[name].outcome, found[name].why) == (Met.NOT_TESTED, f"{what}: refused")


def test_tests_of_which_none_passed_were_not_run(case: Case) -> None:
    case.record.runs.clear()
    case.tested(TESTS, "two", *(row(host, "selftests") for host in HOSTS))
    assert case.points()["selftests"].outcome == Met.NOT_TESTED


def test_a_last_patch_that_does_not_build_is_not_said_to_load(case: Case) -> None:
    case.record.flavours = ["debug"]
    case.series.entries[2].cells = {"build": Status.FAIL}
    case.series.entries[2].status, case.series.entries[2].blamed = Status.FAIL, ["build:error:x:y"]
    case.runs["two"] = run("two", artifacts={})
    case.record.runs.clear()
    case.record.hosts = []
    found = case.points()
    for name in ("vendors", "selftests", "area:shadow paging", "flavour:debug"):
        assert (found[name].outcome, found[name].why) == (Met.NOT_TESTED, "the last patch does not build")
    assert "Loaded in" not in case.letter()
