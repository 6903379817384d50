"""What holds on a host: preconditions of an order, conditions of a step, and the expectation that counts."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping

from kbuild.build.selftests import Programs
from kbuild.load.orders.format import SUCCESS, Cpu, Expectation, Order, Step, When, kernel_name, written


@dataclasses.dataclass(frozen=True)
class Facts:
    """What conditions are about."""

    kernel: str
    """The version, such as `6.1.192`."""
    cpu: Cpu
    has_symbol: Callable[[str], bool]
    """Whether the modules define it; of a set: its `__contains__`."""
    fault: str | None = None
    """The call site of the allocation that was made to fail, where what follows it is run."""
    gives: Collection[str] = ()
    """What the host gives: `vmx`, `ept`, …"""
    parameters: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    """Of each module of the artifacts, by its kernel's name, its parameters' names with `_`."""

    depends: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    """Of each module of the artifacts, by its kernel's name, those that it needs itself."""
    selftests: Programs = dataclasses.field(default_factory=Programs)
    """KVM's selftests that there are."""
    traced: bool = True
    """The modules call the tracer (CONFIG_FUNCTION_TRACER)."""
    smp: bool = True
    """The kernel can have more than one CPU: else its host does not give any, whatever it has."""
    suspends: bool = True
    """The kernel has SUSPEND."""
    given: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The setting that the run is about: of `kvm.tdp_mmu` the value."""

    def has_parameter(self, name: str) -> bool:
        """Of `kvm.tdp_mmu`: whether that module is there and has that parameter."""
        module, _, parameter = name.partition(".")
        return kernel_name(parameter) in self.parameters.get(kernel_name(module), ())


@dataclasses.dataclass(frozen=True)
class NoneHolds:
    """A step has expectations, and none of them is for these facts: it cannot be judged (ERROR)."""

    message: str


def applies(order: Order, facts: Facts) -> str | None:
    """Why a resolved order is skipped: something of the artifacts or the host is missing. None: it is not.

    The modules that there are, are those in `facts.parameters`.
    """
    if facts.kernel not in order.kernels:
        return f"it is for kernels {order.kernels}, and this is {facts.kernel}"
    if missing := [name for name in order.modules if kernel_name(name) not in facts.parameters]:
        return f"there is no {', '.join(f'{name}.ko' for name in missing)}"
    for need in order.needs:
        if not gives(need, facts.gives):
            if need == "smp" and not facts.smp:
                return "the kernel is for one CPU (--flavour smp builds one for more)"
            return f"it needs {need}, and the host gives {', '.join(sorted(facts.gives)) or 'nothing'}"
    for name in order.parameters:
        if not facts.has_parameter(name):
            return no_parameter(name)
    for symbol in order.symbols:
        if not facts.has_symbol(symbol):
            return f"the modules define no {symbol}"
    return None


def no_parameter(name: str) -> str:
    """Of `kvm.tdp_mmu`: the reason to skip what would set it."""
    module, _, parameter = name.partition(".")
    return f"this kernel's {module} has no parameter {parameter}"


def gives(need: str, given: Collection[str]) -> bool:
    """Whether a host that gives all this gives what is needed: `a|b` one of them, `!a` not."""
    return any((one.removeprefix("!") in given) != one.startswith("!") for one in need.split("|"))


def holds(when: When, facts: Facts) -> bool:
    """Whether a condition holds."""
    return not any(_hindrances(when, facts))


def choose(step: Step, facts: Facts) -> Expectation | NoneHolds:
    """The first expectation whose condition holds; without any: success."""
    if not step.expect:
        return SUCCESS
    reasons: list[str] = []
    for number, expectation in enumerate(step.expect, 1):
        hindrances = [*_hindrances(expectation.when, facts)]
        if not hindrances:
            return expectation
        reasons.append(f"{number} needs {' and '.join(hindrances)}")
    fault = f", fault {facts.fault}" if facts.fault else ""
    setting = "".join(f", {name}={value}" for name, value in facts.given.items())
    here = f"kernel {facts.kernel}, cpu {facts.cpu}{setting}{fault}"
    return NoneHolds(f"no expectation is for {here}: {'; '.join(reasons)}")


def _hindrances(when: When, facts: Facts) -> Iterable[str]:
    """The keys of a condition that do not hold."""
    if when.kernel is not None and facts.kernel not in when.kernel:
        yield f"kernel {when.kernel}"
    if when.cpu is not None and when.cpu != facts.cpu:
        yield f"cpu {when.cpu}"
    if when.gives is not None and not gives(when.gives, facts.gives):
        yield f"a host that gives {when.gives}"
    if when.has_symbol is not None and not facts.has_symbol(when.has_symbol):
        yield f"symbol {when.has_symbol}"
    if when.has_parameter is not None and not facts.has_parameter(when.has_parameter):
        yield f"parameter {when.has_parameter}"
    for name, value in when.given.items():
        if facts.given.get(name) != written(value):
            yield f"{name}={written(value)}"
    if when.fault is not None and not fnmatch.fnmatchcase(facts.fault or "", when.fault):
        yield f"fault {when.fault}"
