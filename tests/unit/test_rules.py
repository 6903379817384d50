"""Protects answers to rules over init code: never proved where it is not, never violated on a way that cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from kbuild.elf.code.decode import Code
from kbuild.elf.code.model import satisfiable
from kbuild.elf.code.runs import Runs
from kbuild.elf.code.values import MASK, Symbols, Unknown
from kbuild.elf.inspect import inspect
from kbuild.elf.rules.orders import Answer, Orders
from kbuild.elf.rules.spec import Event, OrderRule, Paths, Rules, SymbolRule, read_rules
from kbuild.errors import UserError
from kbuild.outcome import Status
from kbuild.paths import PROJECT
from tests.unit.test_flow import FUNCTIONS, features  # noqa: F401 (a fixture)

RULES = PROJECT / "profiles/rules"


# Files.


@pytest.mark.parametrize("path", sorted(RULES.glob("*.toml")), ids=lambda path: path.name)
def test_the_projects_own_rules_are_read(path: Path) -> None:
    rules = read_rules((path,))
    assert rules.vendor.imports or not rules.every
    assert rules.every or rules.resources
    assert all(rule.reason for rule in rules.orders)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('then = { call = "a" }', "give first, within, or both"),
        ('then = { call = "a", store = "b" }\nfirst = { call = "c" }', "give one of call, store and read"),
        ('then = { store = "a", arg = "b" }\nfirst = { call = "c" }', "arg and success are a call's"),
        ('then = { call = "a", success = "zero" }\nfirst = { call = "c" }', "then counts when it is entered"),
        ('then = { call = "a" }\nfirst = { call = "c", success = "yes" }', "invalid enum value 'yes'"),
        ('then = { call = "a" }\nfirst = { call = "c" }\npath = "all"', "no such key"),
        ('then = { call = "a" }\nfirst = { call = "c" }\nkernels = "new"', "'new' is not a kernel range"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(f'[[order]]\nid = "x"\n{text}\n')
    with pytest.raises(UserError, match=r"rules\.toml:\d+: ") as caught:
        read_rules((path,))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[section]]\nid = "x"\nname = ".text"', "give present, max_bytes, or both"),
        (
            '[[section]]\nid = "x"\nname = ".text"\npresent = false\nmax_bytes = 3',
            "what is not present has no max_bytes",
        ),
        ('[[section]]\nid = "x"\nname = ".text"\npresent = "no"', "expected `bool | null`, got `str`"),
        ('[[section]]\nid = "x"\nname = ".text"\nmax = 3', "known here: id, name, module, present, max_bytes"),
        ('[[budget]]\nid = "x"\nmax_bytes = 3', "give one of of, function and struct"),
        ('[[budget]]\nid = "x"\nmax_bytes = 3\nof = "bss"', "invalid enum value 'bss'"),
        ('[[budget]]\nid = "x"\nmax_bytes = -3\nof = "init"', ">= 0"),
        ('[[budget]]\nid = "x"\nof = "init"', "required field `max_bytes`"),
    ],
)
def test_what_is_wrong_with_sizes_is_said_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=r"rules\.toml:\d+: ") as caught:
        read_rules((path,))
    assert says in str(caught.value)


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    rule = '[[symbol]]\nid = "x"\nname = "a"\nmodule = "b"\nsection = ".text"\n'
    (tmp_path / "a.toml").write_text(rule)
    (tmp_path / "b.toml").write_text(rule)
    with pytest.raises(UserError, match=r"b\.toml: the rule 'x' is in .*a\.toml already"):
        read_rules((tmp_path / "a.toml", tmp_path / "b.toml"))


# Answers.


def order(function: str, then: str = "then") -> OrderRule:
    return OrderRule(id="x", first=Event(call="first"), then=Event(call=then), entry=function)


def answered(code: Code, rule: OrderRule) -> Answer:
    runs = Runs(code)
    asked = Orders(runs, "flow", rule.entry, [rule], is_vendor=False)
    (answer,) = asked.answers(runs.run(asked.job))
    return answer


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if not re.search("lent|push_flags", name)])
def test_each_shape_of_code_is_answered_rightly(features: Code, function: str) -> None:  # noqa: F811
    """Also those with ways that contradict themselves: there, nothing is violated."""
    answer = answered(features, order(function))
    wanted = "violated" if "breaks" in function else "proved"
    assert answer.answer == wanted, answer.why
    assert (answer.witness is not None) == (wanted == "violated")


@pytest.mark.parametrize(("paths", "answer"), [("all", "violated"), ("error", "violated"), ("success", "proved")])
def test_only_ways_that_return_so_are_asked(features: Code, paths: Paths, answer: str) -> None:  # noqa: F811
    """Of an int half of the register: where it is 0 then() came behind first(), where it is an errno it did not."""
    assert answered(features, msgspec.structs.replace(order("breaks_errno"), paths=paths)).answer == answer


def test_a_way_whose_conditions_exclude_each_other_is_no_witness(features: Code) -> None:  # noqa: F811
    answer = answered(features, order("excludes_bits"))
    assert answer.answer in ("proved", "unknown")
    if answer.answer == "unknown":
        assert "could not be met all at once" in answer.why


def test_names_that_are_nowhere_are_unknown(features: Code) -> None:  # noqa: F811
    answer = answered(features, order(FUNCTIONS[0], "thn"))
    assert (answer.answer, answer.why) == ("unknown", "no symbol is called thn: misspelt, or inlined")


def test_conditions_that_exclude_each_other_have_no_model() -> None:
    symbols = Symbols()
    x = (symbols.of(("memory", 0x1000, 8)), 0, 8)
    low, high = ((symbols.of(("and", x, mask, 8)), 0, 8) for mask in (1, 3))
    nothing, something = ((0, 0),), ((1, MASK[8]),)
    assert satisfiable([(low, something), (high, something)], symbols) is None
    assert satisfiable([(low, nothing), (high, ((2, 2),))], symbols) is None
    assert satisfiable([(low, something), (high, ((2, 2),))], symbols) == "its conditions could not be met all at once"
    lost = (symbols.new("partly written"), 0, 8)
    assert satisfiable([(lost, nothing)], symbols) == "a branch depends on what the analysis lost (partly written)"
    byte = (symbols.of(("memory", 0x1001, 1)), 0, 1)
    assert satisfiable([(x, ((0x2200, 0x22FF),)), (byte, ((0x22, 0x22),))], symbols) is None
    assert satisfiable([(x, ((0x2200, 0x22FF),)), (byte, ((0x23, 0x23),))], symbols), "the same byte of memory"


def test_a_number_that_mends_one_condition_and_breaks_another_is_gone_on_from() -> None:
    """As kvm_mmu_reset_all_pte_masks() makes a mask of x86_phys_bits, which cpuid has said."""
    symbols = Symbols()
    bits, said = (symbols.of(("memory", 0x1000, 1)), 0, 1), (symbols.new("environment"), 0, 1)
    same = (symbols.of(("compare", bits, said, "e", 1)), 0, 1)
    count = (symbols.of(("subtract", 64, bits, 1)), 0, 1)
    mask = (symbols.of(("shr", MASK[8], count, 8)), 0, 8)
    bit = (symbols.of(("bit", mask, 51)), 0, 1)
    assert satisfiable([(same, ((1, 1),)), (bit, ((0, 0),))], symbols) is None
    assert satisfiable([(same, ((0, 0),)), (bit, ((0, 0),))], symbols) is None


def test_conditions_that_each_need_a_bit_of_their_own_have_a_model() -> None:
    """As setup_vmcs_config() clears controls of entry and exit that do not come in pairs, one pair after the other."""
    symbols = Symbols()
    names = iter(range(0x1000, 0x2000, 4))

    def word() -> Unknown:
        return (symbols.of(("memory", next(names), 4)), 0, 4)

    def made(*origin: object) -> Unknown:
        return (symbols.of(origin), 0, 4)

    def asked(condition: str, one: Unknown, other: Unknown) -> Unknown:
        both = made("and", one, other, 4)
        return (symbols.of(("set", condition, ("and", both, both, 4))), 0, 1)

    entry, leave = word(), word()
    conditions = []
    for _ in range(5):
        mine, theirs = word(), word()
        differ = symbols.of(("compare", asked("ne", mine, entry), asked("e", theirs, leave), "e", 1))
        conditions.append(((differ, 0, 1), ((1, 1),)))
        entry = made("and", entry, made("not", mine, 4), 4)
        leave = made("and", leave, made("not", theirs, 4), 4)
    assert satisfiable(conditions, symbols) is None
    # Each may be mended in two ways; not where neither word has a bit left.
    conditions += [(entry, ((MASK[4], MASK[4]),)), (leave, ((MASK[4], MASK[4]),))]
    assert satisfiable(conditions, symbols)


def test_a_condition_that_can_only_be_met_by_breaking_others_has_a_model() -> None:
    """As for_each_possible_cpu() goes on after the first CPU, and neither before it nor later: nr_cpu_ids is all 0."""
    symbols = Symbols()
    count = (symbols.of(("memory", 0x1000, 4)), 0, 4)

    def less(number: int) -> Unknown:
        found = (symbols.of(("result", "find_next_bit", number)), 0, 4)
        return (symbols.of(("compare", found, count, "b", 4)), 0, 1)

    conditions = [(less(1), ((0, 0),)), (less(2), ((1, 1),)), (less(3), ((0, 0),))]
    assert satisfiable(conditions, symbols) is None
    assert satisfiable([*conditions, (count, ((0, 0),))], symbols)


# On a kernel.


@pytest.fixture(scope="module")
def modules(kernel_build: Path) -> list[Path]:
    names = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
    return [kernel_build / name for name in names]


@pytest.mark.kernel
def test_the_review_thread_is_answered(modules: list[Path]) -> None:
    """6.1: the masks are reset before hardware_setup(), as svm_init() and vmx_init() return where that fails;
    the cache is created by kvm_mmu_vendor_module_init(), before hardware_setup() calls kvm_configure_mmu()."""
    found = inspect(modules, None, read_rules((RULES / "mmu-setup-thread.toml",))).findings
    answers = {(one.rule, one.module): one for one in found if one.answer}
    assert len(answers) == 6
    for (rule, module), one in answers.items():
        broken = str(rule).startswith("pte-list-desc-cache")
        assert (one.answer, one.status) == (("violated", Status.FAIL) if broken else ("proved", Status.PASS))
        if broken:
            text = "\n".join(one.witness)
            assert f"kvm_x86_vendor_init() is called at {'svm' if module == 'kvm-amd' else 'vmx'}_init" in text
            assert "kvm_mmu_vendor_module_init() is called at kvm_x86_vendor_init" in text
            assert '"pte_list_desc" at kvm_mmu_vendor_module_init' in text
            assert one.witness[-1].endswith("has not happened on this way")
            assert "kvm_mmu_reset_all_pte_masks() returns to" in text, "it is on the way, and not followed"


@pytest.mark.kernel
def test_a_released_kernel_keeps_its_own_orders(modules: list[Path]) -> None:
    found = inspect(modules, None, read_rules((RULES / "kvm.toml",))).findings
    answers = [one for one in found if one.answer]
    assert {one.module for one in answers} >= {"kvm-amd", "kvm-intel", "kvm"}
    assert [one.message for one in answers if one.status != Status.PASS] == []
    assert sum(one.answer == "proved" for one in answers) > len(answers) / 2


@pytest.mark.kernel
def test_a_released_kernel_breaks_what_its_comment_says(modules: list[Path]) -> None:
    """6.1, vmx_init(): the L1D flush "must be called after common x86 init", which has no hardware_setup() yet."""
    found = inspect(modules, None, read_rules((RULES / "kvm-not-kept.toml",))).findings
    (broken,) = (one for one in found if one.answer and one.status != Status.PASS)
    assert broken.id == "inspect:rule:kvm-intel:l1d-flush-after-hardware-setup-in-6.1"
    assert broken.answer == "violated"
    assert any("vmx_setup_l1d_flush" in line or "vmx_init" in line for line in broken.witness)


@pytest.mark.kernel
def test_exit_calls_what_init_has_put_into_static_calls(modules: list[Path]) -> None:
    """6.1, kvm_arch_hardware_unsetup(): calls the vendor's by a static call, before kvm_mmu_vendor_module_exit()."""
    unsetup = Event(call=("svm_hardware_unsetup", "hardware_unsetup", "vmx_hardware_unsetup"), module="vendor")
    mmu = Event(call="kvm_mmu_vendor_module_exit")
    rules = (
        OrderRule(id="kept", entry="exit", first=unsetup, then=mmu),
        OrderRule(id="broken", entry="exit", first=mmu, then=unsetup),
    )
    found = inspect(modules, None, Rules(read_rules((RULES / "kvm.toml",)).vendor, rules)).findings
    answers = {(one.rule, one.module): one for one in found if one.answer}
    for module in ("kvm-amd", "kvm-intel"):
        assert answers["kept", module].answer == "proved", answers["kept", module].message
        broken = answers["broken", module]
        assert broken.answer == "violated"
        assert "kvm_exit() is called at" in broken.witness[0]


@pytest.mark.kernel
def test_what_is_asked_of_one_function_tells_others_nothing(modules: list[Path]) -> None:
    """vmx_init(), asked by itself, has data that nobody knows: what it updates static calls to is not known either."""
    one = OrderRule(id="x", entry="vmx_init", first=Event(call="kvm_x86_vendor_init"), then=Event(call="kvm_init"))
    two = OrderRule(
        id="y", entry="kvm_arch_hardware_enable", first=Event(call="misc_register"), then=Event(call="misc_deregister")
    )
    for rules in ((one, two), (two, one)):
        found = inspect(modules, None, Rules(read_rules((RULES / "kvm.toml",)).vendor, rules)).findings
        assert [finding.answer for finding in found if finding.rule == "y"] == ["unreached"], rules[0].id


@pytest.mark.kernel
def test_a_symbol_is_where_it_should_be(modules: list[Path]) -> None:
    def rule(section: str, name: str = "kvm_mmu_vendor_module_init") -> SymbolRule:
        return SymbolRule(id="x", name=name, module="kvm", section=section)

    for one, status in ((rule(".text"), "PASS"), (rule(".init*"), "FAIL"), (rule(".text", "nobody"), "FAIL")):
        (found,) = (f for f in inspect(modules, None, Rules(symbols=(one,))).findings if f.rule == "x")
        assert found.status == status
