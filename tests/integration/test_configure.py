"""Configuring a real 6.1: the shipped fragments take effect, and a request that does not is explained truthfully.

Each line of a Kconfig file that an answer names is looked up in the source: it has to say what the answer says it does.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from kbuild.configure.answer import Problem
from kbuild.configure.conf import BrokenKconfigError, Configuration, RefusedError, configure, read_config
from kbuild.configure.fragment import Fragment
from kbuild.configure.kconfig import explain
from kbuild.configure.request import Request
from kbuild.errors import HarnessError, UserError
from kbuild.gate.wanted import requested_symbols
from kbuild.outcome import Status
from kbuild.paths import PROJECT
from kbuild.profile import read_profile

SHIPPED = tuple(Fragment.read(PROJECT / "profiles" / "fragments" / name) for name in ("base.config", "kvm.config"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all: its conf is made once."""
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def other_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For requests other than the shipped ones."""
    return tmp_path_factory.mktemp("other")


@pytest.fixture(scope="module")
def shipped(kernel_source: Path, output: Path) -> Configuration:
    return configure(kernel_source, output, Request(fragments=SHIPPED), predict=True)


def line_of(source: Path, place: object) -> str:
    file, _, line = str(place).rpartition(":")
    return (source / file).read_text().splitlines()[int(line) - 1].strip()


def refused(source: Path, output: Path, lines: str, *fragments: Fragment) -> Mapping[str, Problem]:
    with pytest.raises(RefusedError) as caught:
        configure(source, output, Request(fragments=(*fragments, Fragment.parse(lines, "asked.config"))))
    problems = caught.value.problems
    assert str(caught.value).splitlines() == [str(problem) for problem in problems]
    for problem in problems:
        assert str(problem).startswith(f"asked.config:{problem.option.place.line}: CONFIG_{problem.option.name}")
        for file, line in re.findall(r"([\w./-]*Kconfig[\w.]*):(\d+)", problem.message):
            assert line_of(source, f"{file}:{line}"), problem.message
    return {problem.option.name: problem for problem in problems}


def test_the_shipped_fragments_take_effect_and_kconfiglib_agrees_with_conf(shipped: Configuration) -> None:
    values = read_config(shipped.config.read_text())
    assert {option.name: values[option.name] for option in shipped.requested} == {
        option.name: option.value for fragment in SHIPPED for option in fragment.for_kernel("6.1").options
    }
    assert shipped.findings == ()
    assert "SMP" in values and values["SMP"] == "n"


def test_each_flavour_takes_effect(kernel_sources: Mapping[str, Path], tmp_path: Path) -> None:
    """What does not is refused by `configure` itself."""
    flavours = [one.name for one in read_profile("default").settings.flavour]
    assert {"debug", "kasan", "fault", "trace"} <= {*flavours}
    for series, source in kernel_sources.items():
        for name in flavours:
            request = requested_symbols(read_profile("default", name))
            done = configure(source, tmp_path / series, request)
            more = Fragment.read(PROJECT / f"profiles/fragments/{name}.config").for_kernel(series).options
            values = read_config(done.config.read_text())
            assert {option.name: values[option.name] for option in more} == {one.name: one.value for one in more}


@pytest.mark.parametrize("base", ["defconfig", "olddefconfig"])
def test_kconfiglib_agrees_with_conf_on_other_bases(kernel_source: Path, other_output: Path, base: str) -> None:
    asked = "CONFIG_MODULES=y\nCONFIG_HIGH_RES_TIMERS=y\nCONFIG_KVM=m\nCONFIG_KVM_INTEL=m\nCONFIG_HZ_100=y\n"
    request = Request(base, (Fragment.parse(asked, "asked.config"),))
    assert configure(kernel_source, other_output, request, predict=True).findings == ()


def test_the_file_is_replaced_only_when_its_content_changes(
    kernel_source: Path, output: Path, shipped: Configuration
) -> None:
    os.utime(shipped.config, ns=(1, 1))
    again = configure(kernel_source, output, Request(fragments=SHIPPED))
    assert (again.changed, again.config.stat().st_mtime_ns) == (False, 1)
    more = Fragment.parse("CONFIG_KVM_XEN=y\n", "asked.config")
    assert configure(kernel_source, output, Request(fragments=(*SHIPPED, more))).changed
    before = shipped.config.read_bytes()
    refused(kernel_source, output, "CONFIG_KVM_INTLE=m\n", *SHIPPED)
    assert shipped.config.read_bytes() == before, "a refused request must leave the configuration alone"
    assert configure(kernel_source, output, Request(fragments=SHIPPED)).changed


def test_requests_that_do_not_take_effect(kernel_source: Path, other_output: Path) -> None:
    problems = refused(
        kernel_source,
        other_output,
        "CONFIG_KVM_INTLE=m\nCONFIG_KVM_INTEL=m\nCONFIG_X86_UP_APIC=y\nCONFIG_HAVE_KVM=n\nCONFIG_HZ=300\n",
    )
    assert list(problems) == ["KVM_INTLE", "KVM_INTEL", "X86_UP_APIC", "HAVE_KVM", "HZ"]
    assert problems["KVM_INTLE"].kind == "unknown"
    assert "nearest: KVM_INTEL" in problems["KVM_INTLE"].message

    kvm = next(part for part in problems["KVM_INTEL"].blockers if part.expression == "KVM")
    assert problems["KVM_INTEL"].kind == "blocked"
    assert re.match(r"depends on KVM\b", line_of(kernel_source, kvm.place))
    assert line_of(kernel_source, kvm.operands[0].place) in ("config KVM", "menuconfig KVM")
    assert str(kvm.place) in problems["KVM_INTEL"].message

    (blocker, *_) = problems["X86_UP_APIC"].blockers
    assert blocker.expression == "X86_32"
    assert re.match(r"depends on X86_32\b", line_of(kernel_source, blocker.place))
    assert line_of(kernel_source, blocker.operands[0].place) == "config X86_32"
    assert "64BIT is y" in problems["X86_UP_APIC"].message

    assert problems["HAVE_KVM"].kind == "forced"
    selecting = re.search(r"selected by X86 \(([^)]*)\)", problems["HAVE_KVM"].message)
    assert selecting is not None
    assert line_of(kernel_source, selecting[1]) == "select HAVE_KVM"
    assert problems["HZ"].kind == "promptless"


def test_what_is_worth_knowing_is_information(kernel_source: Path, other_output: Path) -> None:
    fragments = (
        Fragment.parse("CONFIG_EXPERT=y\nCONFIG_PRINTK=y\n", "one.config"),
        Fragment.parse("# CONFIG_PRINTK is not set\n# CONFIG_PRINKT is not set\n", "two.config"),
    )
    findings = configure(kernel_source, other_output, Request(fragments=fragments)).findings
    assert {finding.status for finding in findings} == {Status.DONE}
    assert [finding.id for finding in findings] == [
        "configure:overridden:PRINTK:fragment",
        "configure:unknown-symbol:PRINKT:is-not-set",
    ]
    assert "nearest: PRINTK" in findings[1].message


def test_input_that_make_would_refuse(kernel_source: Path, tmp_path: Path) -> None:
    for request, where, words in (
        (Request("allnoconfg"), kernel_source, "base 'allnoconfg'"),
        (Request("no_such_defconfig"), kernel_source, "no_such_defconfig"),
        (Request(arch="vax"), kernel_source, "architecture 'vax'"),
        (Request(), tmp_path, "no Linux source tree"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            configure(where, tmp_path / "o", request)
    with pytest.raises(UserError, match="no blanks or colons"):
        configure(kernel_source, tmp_path / "an output", Request())
    assert not (tmp_path / "o").exists()


@pytest.fixture
def kconfig_only(kernel_source: Path, tmp_path: Path) -> Path:
    """The tree with folders by reference, so that a test can put a file of its own in the place of one of them."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for entry in kernel_source.iterdir():
        (tree / entry.name).symlink_to(entry)
    return tree


def test_a_broken_kconfig_file_is_the_kernels_fault(kconfig_only: Path, tmp_path: Path) -> None:
    top = kconfig_only / "Kconfig"
    text = top.read_text()
    top.unlink()
    top.write_text(f"{text}\nconfig BROKEN\n\tbool bogus\n")
    with pytest.raises(BrokenKconfigError) as caught:
        configure(kconfig_only, tmp_path / "o", Request())
    assert caught.value.status is Status.FAIL
    assert re.search(r" Kconfig:\d+: ", str(caught.value))


def test_a_tree_that_was_built_in_place_is_refused(kconfig_only: Path, tmp_path: Path) -> None:
    (kconfig_only / ".config").touch()
    with pytest.raises(UserError, match="make mrproper"):
        configure(kconfig_only, tmp_path / "o", Request())


def test_explain_says_what_the_source_says(
    kernel_source: Path, output: Path, shipped: Configuration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    request = Request(fragments=SHIPPED)
    explanation = explain(kernel_source, output, "CONFIG_KVM_AMD", request)
    assert (explanation.value, explanation.type, explanation.visible) == ("m", "tristate", "m")
    assert explanation.requested is not None
    assert explanation.answer == f"KVM_AMD is m, as {explanation.requested.place} asks"
    assert explanation.help
    (definition,) = explanation.definitions
    assert line_of(kernel_source, definition.place) == "config KVM_AMD"
    assert definition.prompt is not None and definition.prompt in line_of(
        kernel_source, f"{definition.place.file}:{definition.place.line + 1}"
    )
    for part in definition.depends:
        assert line_of(kernel_source, part.place).startswith(part.word)
        assert part.expression in line_of(kernel_source, part.place)
        assert part.value in ("m", "y")

    forced = explain(kernel_source, shipped.config.parent, "IRQ_BYPASS_MANAGER", request)
    active = [selection for selection in forced.selected_by if selection.value != "n"]
    assert [selection.symbol for selection in active] == ["KVM"]
    assert line_of(kernel_source, active[0].place) == "select IRQ_BYPASS_MANAGER"

    without_output = explain(kernel_source, None, "HZ_250", request)
    assert without_output.choice_selection == "HZ_100"
    with pytest.raises(UserError, match="nearest: KVM_INTEL"):
        explain(kernel_source, output, "KVM_INTLE", request)
    with pytest.raises(UserError, match="no symbol's name"):
        explain(kernel_source, output, "KVM INTEL", request)


def test_explain_needs_neither_make_nor_compiler(
    kernel_source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "setpriv", "cat", "sed", "grep", "expr", "env", "test", "printf", "mkdir", "rm", "trap", "awk"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    assert not any(map(shutil.which, ("make", "gcc", "cc", "clang", "ld")))
    explanation = explain(kernel_source, None, "KVM_INTEL", Request(fragments=SHIPPED))
    assert explanation.value == "m"
    assert "could not be evaluated" in explanation.note
    asking = explain(kernel_source, None, "CC_IS_GCC", Request(fragments=SHIPPED))
    assert asking.value == "n"
    assert asking.note.endswith("CC_IS_GCC")
    with pytest.raises(HarnessError, match="'make' is not installed"):
        configure(kernel_source, tmp_path / "o", Request(fragments=SHIPPED))
