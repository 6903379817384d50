"""Protects what is read out of a trace, and that a rule is never said to be kept, or broken, on less than was seen.

tests/data/traces: lines as the agent sent them, of Debian's kernels; in front of them the functions that were watched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kbuild.elf.image import ModuleImage, read_module
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.object import Symbol
from kbuild.elf.rules.spec import Event, OrderRule, Paths, read_rules
from kbuild.load.protocol import LogRecord
from kbuild.load.session import Reply
from kbuild.load.trace.asked import Asked, Question, Watchable, ask
from kbuild.load.trace.compare import answers_in, compare
from kbuild.load.trace.lines import read_lines, read_missed
from kbuild.load.trace.observe import observe
from kbuild.load.trace.places import Places
from kbuild.load.trace.record import warm_up
from kbuild.outcome import Finding, Status
from kbuild.paths import PROJECT
from kbuild.traces import Call, Observation, Part, Seen, Trace, read_trace, write_trace
from kbuild.transcript import Transcript

DATA = PROJECT / "tests/data/traces"


def recorded(name: str) -> tuple[list[str], list[str]]:
    """The lines of a trace, and the watched functions."""
    lines = (DATA / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("# ")], [line[2:] for line in lines if line.startswith("# ")]


@pytest.fixture(scope="module")
def amd() -> Part:
    part = Part(action="load", module="kvm_amd")
    lines, names = recorded("load-kvm_amd-6.1.0-56-amd64")
    read_lines(lines, part, names)
    return part


def the(part: Part, name: str) -> Call:
    (call,) = [call for call in part.calls if call.function == name]
    return call


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.iterdir()))
def test_a_real_trace_is_read_to_its_last_line(name: str) -> None:
    part = Part(action="", module="")
    lines, names = recorded(name)
    read_lines(lines, part, names)
    assert part.unread == 0 and len(part.calls) > 15
    assert all(call.returned is not None and call.returned > call.entered for call in part.calls)
    assert [call.entered for call in part.calls] == sorted(call.entered for call in part.calls)


def test_both_vendors_do_the_same_in_their_own_functions() -> None:
    """arch/x86/kvm/vmx/vmx.c, vmx_init() and hardware_setup() of 6.1, as svm.c's."""
    part = Part(action="load", module="kvm_intel")
    lines, names = recorded("load-kvm_intel-6.1.0-56-amd64")
    read_lines(lines, part, names)
    init, setup, device = (the(part, name) for name in ("vmx_init", "hardware_setup", "misc_register"))
    assert (init.module, setup.module, device.module, setup.result) == ("kvm_intel", "kvm_intel", None, 0)
    assert init.entered < setup.entered < (setup.returned or 0) < device.entered < (init.returned or 0)


def test_calls_are_inside_of_those_that_make_them(amd: Part) -> None:
    """svm.c, svm_init() of 6.1: kvm_x86_vendor_init() and then kvm_init(), which leads to hardware_setup()."""
    init, vendor, common, setup = (
        the(amd, name) for name in ("svm_init", "kvm_x86_vendor_init", "kvm_init", "svm_hardware_setup")
    )
    assert (init.module, vendor.module, setup.module) == ("kvm_amd", "kvm", "kvm_amd")
    assert init.entered < vendor.entered < (vendor.returned or 0) < common.entered < setup.entered
    assert (setup.returned or 0) < (common.returned or 0) < (init.returned or 0)
    assert (vendor.depth, common.depth) == (init.depth + 1, init.depth + 1)
    assert init.duration_us is not None and common.duration_us is not None and init.duration_us > common.duration_us


def test_probes_give_strings_and_results(amd: Part) -> None:
    """arch/x86/kvm/mmu/mmu.c, kvm_mmu_vendor_module_init(); kernel calls below a module's are not the module's."""
    caches = [call for call in amd.calls if call.function == "kmem_cache_create"]
    assert {"pte_list_desc", "kvm_mmu_page_header", "kvm_async_pf"} == {call.strings[0] for call in caches}
    assert all(call.result and call.caller and call.caller.endswith("[kvm]") for call in caches)
    assert (the(amd, "misc_register").result, the(amd, "svm_hardware_setup").result) == (0, 0)
    usercopy = {call.strings[0] for call in amd.calls if call.function == "kmem_cache_create_usercopy"}
    assert usercopy == {"x86_emulator", "kvm_vcpu"}, "kmem_cache_create() calls it too, and no rule is about that"


@pytest.mark.parametrize(
    ("line", "unread"),
    [
        ("1.000001 | 0) init-5 | | f() {", 0),
        ("1.000001 | 0) a b-c-5 | 1.5 us | f [kvm]();", 0),
        ("------------------------------------------", 0),
        ("0) init-147 => cpuhp/0-18", 0),
        ("1.000001 | 0) init-5 | | } /* g */", 0),
        ("1.000001 | 0) init-5 | | /* e9: (f+0x0/0x1) caller=g+0x1/0x2 [kvm] */", 1),
        ("1.000001 | 0) init-5 | | /* some other event: x=1 */", 1),
        ("CPU:0 [LOST 12 EVENTS]", 1),
        ("", 1),
        ("\x00\xff", 1),
    ],
)
def test_a_line_that_says_something_else_is_counted(line: str, unread: int) -> None:
    part = Part(action="load", module="kvm")
    read_lines([line], part, ["f"])
    assert part.unread == unread


def test_what_the_kernel_says_while_the_tracer_warms_up_is_kept() -> None:
    """The rest of what it said at the boot comes with the first command, and what it has to say of the tracer."""

    class Talk:
        """In place of a session: each answer brings a line of before and one of its own."""

        number = 0

        def command(self, *_: str) -> Reply:
            self.number += 1
            lines = [LogRecord(id=0, seq=self.number * 2 + at, us=0, level=4, text="") for at in (0, 1)]
            return Reply(self.number, earlier=lines[:1], log=lines[1:])

    talk: Any = Talk()
    kept = [record.seq for record in warm_up(talk)]
    assert kept == [*range(2, 2 * talk.number + 2)]
    assert kept


def test_functions_of_a_module_that_is_gone_have_their_names(kernel_build: Path) -> None:
    """Also where the kernel takes them for another module's init functions, which were there before."""
    amd, kvm = (read_module(kernel_build / f"arch/x86/kvm/{name}.ko") for name in ("kvm-amd", "kvm"))
    symbols = {symbol.name: symbol for image in (amd, kvm) for symbol in image.symbols}
    address = 0xFFFFFFFFC0100000 + symbols["svm_hardware_unsetup"].value
    old = next(one for one in kvm.symbols if one.kind == "func" and one.size and _section(kvm, one) == ".init.text")
    begin = symbols["svm_hardware_unsetup"].value
    others = {one.value for one in amd.symbols if one.kind == "func" and one.size and _section(amd, one) == ".text"}
    several = sum(begin <= value < begin + old.size for value in others) > 1
    places = Places(ModuleSet.of([amd, kvm], None))
    places.note("kvm_amd", [".text 0xffffffffc0100000", ".init.text nonsense", "odd"])
    places.note("kvm", [f".init.text {address - old.value:#x}", ".text 0xffffffffc0200000"])
    for name in (f"{address:#x}", f"{old.name} [kvm]"):
        part = Part(action="unload", module="kvm_amd")
        lines = [f"1.000001 | 0) i-1 | | {name}() {{", f"1.000009 | 0) i-1 | 8.000 us | }} /* {name} */"]
        read_lines(lines, part, [], places)
        (call,) = part.calls
        found = ("?", "?") if several and "[" in name else ("kvm_amd", "svm_hardware_unsetup")
        assert (call.module, call.function, call.duration_us) == (*found, 8.0)
    assert places.function(0xFFFFFFFFC0000000) is None
    assert places.really("kvm", "kvm_init") == ("kvm", "kvm_init")


def _section(image: ModuleImage, symbol: Symbol) -> str:
    return {one.index: one.name for one in image.sections}.get(-1 if symbol.section is None else symbol.section, "")


def test_probes_that_missed_are_named() -> None:
    assert [*read_missed(["e0 5 0", "r1 5 2", "x", "r9 1 1"], ["a", "kvm:b"])] == [("kvm:b", 2)]


def test_a_trace_comes_back_from_its_file(tmp_path: Path, amd: Part) -> None:
    trace = Trace(parts=[amd], blind=["f"])
    write_trace(tmp_path / "trace.json", trace)
    assert read_trace(tmp_path / "trace.json") == trace


# Rules.


def watchable(event: Event, *functions: str, hidden: tuple[str, ...] = ()) -> Watchable:
    pairs = ((None, name) if ":" not in name else (name.split(":")[0], name.split(":")[1]) for name in functions)
    return Watchable(event, event.told(()), frozenset(pairs), hidden)


def asked(
    first: Watchable | None, then: Watchable, within: Watchable | None = None, entry: str = "init", paths: Paths = "all"
) -> Asked:
    rule = OrderRule(
        id="r",
        then=then.event,
        first=first.event if first else None,
        within=within.event if within else None,
        entry=entry,
        paths=paths,
    )
    names = frozenset({("kvm_amd", "svm_init"), ("kvm_amd", "init_module")} if entry == "init" else {("kvm", entry)})
    return Asked(rule, "kvm-amd", names, first, then, within)


def seen(part: Part, *some: Asked, blind: tuple[str, ...] = ()) -> list[Seen]:
    return [one.seen for one in observe(Question(some), Trace(parts=[part], blind=[*blind]))]


SETUP = watchable(Event(call="svm_hardware_setup", success="zero"), "kvm_amd:svm_hardware_setup")
MISC = watchable(Event(call="misc_register"), "misc_register")
PTE = watchable(Event(call="kmem_cache_create", arg="pte_list_desc"), "kmem_cache_create")
INIT = watchable(Event(call="kvm_init"), "kvm:kvm_init")
NEVER = watchable(Event(call="f"), "f")


def test_what_came_after_is_kept_and_what_came_before_is_broken(amd: Part) -> None:
    """kvm_dev is registered at the end of virt/kvm/kvm_main.c, kvm_init(); the caches are made before it is called."""
    assert seen(amd, asked(SETUP, MISC), asked(PTE, MISC), asked(SETUP, PTE)) == ["kept", "kept", "broken"]
    assert seen(amd, asked(None, MISC, INIT), asked(None, PTE, INIT)) == ["kept", "broken"]
    assert seen(amd, asked(MISC, NEVER), asked(NEVER, MISC)) == ["not seen", "broken"]
    (one,) = observe(Question((asked(SETUP, PTE),)), Trace(parts=[amd]))
    assert one.why.startswith('kmem_cache_create() of "pte_list_desc" came before svm_hardware_setup()')


def test_a_call_counts_as_first_once_it_has_returned_as_it_should(amd: Part) -> None:
    inside = watchable(Event(call="kvm_arch_hardware_setup"), "kvm:kvm_arch_hardware_setup")
    assert seen(amd, asked(INIT, inside)) == ["broken"], "it is called by kvm_init()"
    wanted = watchable(Event(call="svm_hardware_setup", success="nonnull"), "kvm_amd:svm_hardware_setup")
    assert seen(amd, asked(wanted, MISC)) == ["broken"], "it returned 0"


def test_another_module_or_entry_says_nothing(amd: Part) -> None:
    other = Asked(asked(SETUP, PTE).rule, "kvm-intel", frozenset({("kvm_intel", "vmx_init")}), SETUP, PTE, None)
    assert seen(amd, other) == []
    assert seen(amd, asked(SETUP, PTE, entry="kvm_init")) == ["not seen"], "the caches come before it"


def test_what_cannot_be_seen_breaks_nothing(amd: Part) -> None:
    store = watchable(Event(store="tdp_enabled"), hidden=("a trace shows no stores",))
    inlined = watchable(Event(call="f"), "f", hidden=("f() is inlined",))
    assert seen(amd, asked(store, PTE), asked(SETUP, store), asked(inlined, PTE)) == ["not observable"] * 3
    assert seen(amd, asked(NEVER, MISC), blind=("f",)) == ["not observable"]
    assert seen(amd, asked(SETUP, MISC), blind=("misc_register",)) == ["kept"], "what was seen was as it should be"
    assert seen(amd, asked(SETUP, PTE, paths="error")) == ["not observable"], "nobody asked what init returned"


def test_where_events_were_lost_nothing_is_broken_and_nothing_kept(amd: Part) -> None:
    for more in ({"lost": 1}, {"unread": 1}):
        part = Part(action=amd.action, module=amd.module, calls=amd.calls, **more)
        assert seen(part, asked(SETUP, MISC), asked(SETUP, PTE), asked(MISC, NEVER)) == ["incomplete"] * 3


def test_a_string_that_could_not_be_read_may_be_any() -> None:
    calls = [Call(function="kmem_cache_create", task="t", depth=1, us=1, entered=1, returned=2)]
    entry = Call(function="init_module", module="kvm_amd", task="t", depth=0, us=0, entered=0, returned=9)
    part = Part(action="load", module="kvm_amd", calls=[entry, *calls])
    assert seen(part, asked(SETUP, PTE)) == ["incomplete"]
    late = Call(function="misc_register", task="t", depth=1, us=3, entered=3, returned=4)
    part.calls.append(late)
    assert seen(part, asked(PTE, MISC)) == ["broken"], "as in the analysis, it is never a first"


def test_paths_are_told_by_what_the_entry_returned() -> None:
    entry = Call(function="svm_init", module="kvm_amd", task="t", depth=0, us=0, entered=0, returned=9)
    then = Call(function="misc_register", task="t", depth=1, us=3, entered=3, returned=4)
    for result, on_success, on_error in ((0, "broken", "not seen"), (0xFFFFFFF4, "not seen", "broken")):
        entry.result = result
        part = Part(action="load", module="kvm_amd", calls=[entry, then])
        both = asked(NEVER, MISC, paths="success"), asked(NEVER, MISC, paths="error")
        assert seen(part, *both) == [on_success, on_error]


def test_the_kernels_functions_are_watched_and_modules_without_ftrace_show_nothing(kernel_build: Path) -> None:
    paths = [*(kernel_build / "arch/x86/kvm").glob("*.ko"), *(kernel_build / "virt/lib").glob("*.ko")]
    question = ask(ModuleSet.of(map(read_module, paths), None), read_rules((PROJECT / "profiles/rules/kvm.toml",)))
    watched = {one.name: one for one in question.watched}
    assert watched["misc_register"].enters and not watched["misc_register"].strings
    assert watched["kmem_cache_create"].strings
    assert not any(name.startswith(("kvm_init", "kvm:", "kvm_amd:")) for name in watched)
    rules = {one.rule.id: one for one in question.asked if one.module == "kvm-amd"}
    then = rules["vendor-init-before-kvm-init"].then
    assert (then.functions, then.hidden) == (frozenset(), ("kvm_init() does not call the tracer",))


# Beside what was proved.


def judged(seen: Seen, answer: str | None) -> Transcript:
    one = Observation(rule="r", module="kvm-amd", seen=seen, why="f() came before g()")
    finding = Finding(
        id="inspect:rule:kvm-amd:r", status=Status.PASS, message="", rule="r", module="kvm-amd", answer=answer
    )
    transcript = Transcript(host="h", order="trace", status=Status.PASS, observed=[one])
    return compare(transcript, answers_in([finding] if answer else []))


@pytest.mark.parametrize("answer", ["proved", "unreached"])
def test_a_proof_that_a_trace_contradicts_is_an_error_of_ours(answer: str) -> None:
    transcript = judged("broken", answer)
    (finding,) = transcript.findings
    assert (transcript.status, finding.status) == (Status.ERROR, Status.ERROR)
    assert finding.id == "load:contradicted:kvm-amd:r"
    assert "THE ANALYSIS IS WRONG" in finding.message and "f() came before g()" in finding.message
    assert (transcript.reason, transcript.observed[0].answer) == (finding.message, answer)


@pytest.mark.parametrize("answer", ["unknown", None])
def test_a_rule_that_nobody_proved_and_that_was_seen_to_break_is_the_kernels(answer: str | None) -> None:
    transcript = judged("broken", answer)
    assert [one.id for one in transcript.findings] == ["load:observed:kvm-amd:r"]
    assert transcript.status == Status.FAIL


@pytest.mark.parametrize(
    ("seen", "answer"),
    [("broken", "violated"), ("kept", "proved"), ("kept", "violated"), ("incomplete", "proved"), ("not seen", None)],
)
def test_all_else_stands_beside_the_answer(seen: Seen, answer: str | None) -> None:
    transcript = judged(seen, answer)
    assert (transcript.status, transcript.findings) == (Status.PASS, [])
    assert (transcript.observed[0].seen, transcript.observed[0].answer) == (seen, answer)
