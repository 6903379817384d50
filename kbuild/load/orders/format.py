"""The tables of an order's file, as they are written. What an action needs and takes is data: ACTIONS and CHECKS."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import msgspec

from kbuild.load.guests import SmokeKind
from kbuild.load.protocol import errno_number
from kbuild.versions import KernelRange

Cpu = Literal["intel", "amd"]
Check = Literal["footprint", "parameters", "kvm-device", "module", "log", "files", "leaks", "memory", "drift"]
Value = str | int | bool
"""Of a module parameter."""

VENDOR_MODULES: Mapping[Cpu, str] = {"intel": "kvm-intel", "amd": "kvm-amd"}
"""What `{vendor}` stands for on a host, as the file is named."""


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The keys beside an action."""

    needs: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    """At least one of these."""
    takes: tuple[str, ...] = ()
    expects: bool = False
    """It may have `[[step.expect]]`; what has none says itself what it expects, and may say `why`."""

    @property
    def keys(self) -> tuple[str, ...]:
        """All that it may have."""
        return self.needs + self.one_of + self.takes


ACTIONS: Mapping[str, Grammar] = {
    "load": Grammar(takes=("params", "on_cpu"), expects=True),
    "unload": Grammar(takes=("on_cpu",), expects=True),
    "smoke": Grammar(takes=("on_cpu",), expects=True),
    "selftest": Grammar(takes=("seconds", "log", "why")),
    "hold": Grammar(takes=("on_cpu",), expects=True),
    "release": Grammar(),
    "check": Grammar(),
    "inject": Grammar(needs=("module",), takes=("params", "tolerate", "log", "why")),
    "cpu": Grammar(takes=("on_cpu",), expects=True),
    "suspend": Grammar(expects=True),
    "together": Grammar(needs=("step",), expects=True),
    "reboot": Grammar(takes=("why",)),
    "repeat": Grammar(needs=("step",)),
    "trace": Grammar(needs=("step",)),
}
"""An action is the key of a step that says what is done."""
CHECKS: Mapping[str, Grammar] = {
    "footprint": Grammar(),
    "parameters": Grammar(needs=("module", "params"), takes=("why",)),
    "kvm-device": Grammar(takes=("present", "why")),
    "module": Grammar(needs=("module",), one_of=("state", "refs", "holders"), takes=("why",)),
    "log": Grammar(needs=("log",), takes=("why",)),
    "files": Grammar(takes=("why",)),
    "leaks": Grammar(takes=("why",)),
    "memory": Grammar(),
    "drift": Grammar(takes=("why",)),
}
MODIFIERS = (
    *("params", "on_cpu", "module", "state", "refs", "holders", "present", "seconds", "log", "why", "step", "tolerate"),
)
"""The keys beside actions that belong to some of them only."""


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A condition; all of its keys are to hold."""

    kernel: KernelRange | None = None
    """The kernel's version is one of these."""
    cpu: Cpu | None = None
    """The host's vendor."""
    gives: str | None = None
    """As in `needs`: what the host gives, `a|b` one of them, `!a` not."""
    has_symbol: str | None = None
    """The kernel or one of its modules defines it."""
    has_parameter: str | None = None
    """`kvm.tdp_mmu`: that module has that parameter in this kernel."""
    given: dict[str, Value] = {}
    """`kvm.tdp_mmu`: the order's matrix gives that parameter this value."""
    fault: str | None = None
    """Behind `inject`: a glob over call sites, which the allocation that failed is at."""


class ExpectedLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Ids of signatures: those that have to come, those that may, and those that must not, even where nobody cares."""

    must: tuple[str, ...] = ()
    """They have to come."""
    may: tuple[str, ...] = ()
    """They may come, and do not count then."""
    must_not: tuple[str, ...] = ()
    """They must not come, even where nobody cares."""

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """Each key with each of its ids."""
        return tuple((key, name) for key in ("must", "may", "must_not") for name in getattr(self, key))


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a step is expected to do, and why: with file and function of the kernel."""

    why: str
    """File and function of the kernel that make it so."""
    when: When = When()
    """Where it is expected; the first whose `when` holds counts."""
    errno: str | None = None
    """The name of the system call's errno; None: it succeeds."""
    errnos: tuple[tuple[str, ...], ...] = ()
    """Of `together`: what may come of its steps, all of them, in their order; `success`, or the name of an errno."""
    log: ExpectedLog = ExpectedLog()
    """What the kernel says during the step."""

    @property
    def errno_number(self) -> int:
        """The positive number, or 0."""
        return 0 if self.errno is None else errno_number(self.errno)


SUCCEEDED = "success"


def outcome_number(name: str) -> int:
    """The errno that an outcome of a part stands for: 0 for `success`. Raises UserError."""
    return 0 if name == SUCCEEDED else errno_number(name)


SUCCESS = Expectation(why="a step with no expectation of its own succeeds")


class Tolerated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An allocation that may fail and does not make the load fail."""

    site: str
    """A glob over call sites: `kvm_init/debugfs_create_dir`, who asks for it and what it calls."""
    source: str
    """Where that is: file and function, or file and line."""
    reason: str
    """Why the load may go on."""
    through: str = ""
    """A function that has to be on the allocation's stack, for a call site that needs some of what it asks for."""
    when: When = When()
    """Where that is so."""


class CpuChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A CPU that is taken away or given back: exactly one of the keys, with its number."""

    offline: int | None = None
    """The CPU that is taken away."""
    online: int | None = None
    """The CPU that is given back."""

    @property
    def words(self) -> tuple[str, str]:
        """As the agent takes them."""
        return ("offline", str(self.offline)) if self.offline is not None else ("online", str(self.online))


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step: exactly one of ACTIONS."""

    load: str | None = None
    """A module, by its file's name without suffix."""
    unload: str | None = None
    """A module, likewise."""
    smoke: tuple[SmokeKind, ...] | None = None
    """Guests of these kinds run, each to its end."""
    selftest: tuple[str, ...] | None = None
    """Programs of the tree's tools/testing/selftests/kvm, by name or glob."""
    seconds: int | None = None
    """That each of them may take, by the guest's clock."""
    hold: Literal["kvm-device", "vm", "vcpu", "guest"] | None = None
    """A process opens this and keeps it, and nothing besides; `guest`: it runs one, without end."""
    release: Literal[True] | None = None
    """That process ends."""
    check: Check | None = None
    """What is looked at and has to be as it should."""
    inject: Literal["load", "unload"] | None = None
    """Do that with `module` again and again, and let another allocation fail each time."""
    cpu: CpuChange | None = None
    """Take a CPU away, or give it back."""
    suspend: Literal["freezer", "devices", "platform", "processors", "core", "memory"] | None = None
    """Suspend to RAM and come back: as far as that level of /sys/power/pm_test; `memory`: all the way."""
    together: Literal[True] | None = None
    """Begin the steps in `step` at once, each on its CPU."""
    reboot: Literal["power-off", "restart"] | None = None
    """The end of the order's guest."""
    repeat: int | None = None
    """Do the steps in `step` so many times."""
    trace: tuple[str, ...] | None = None
    """Record what functions of these modules are called during the steps in `step`."""
    step: tuple[Step, ...] = ()
    """The steps of `together`, `repeat` and `trace`."""
    params: dict[str, Value] = {}
    """Of a load: what is given; of `check = "parameters"`: what /sys/module/…/parameters says."""
    on_cpu: int | None = None
    """The CPU that does it; absent: any."""
    module: str | None = None
    """What `check` looks at, or what is loaded or unloaded by `inject`."""
    tolerate: tuple[Tolerated, ...] = ()
    """Of `inject = "load"`: the allocations without which the load succeeds by design. There is no default."""
    state: Literal["live", "coming", "going", "absent"] | None = None
    """For `check = "module"`: as in /sys/module/…/initstate, or that the module is not there."""
    refs: int | None = None
    """For `check = "module"`: its reference count, as in /proc/modules."""
    holders: tuple[str, ...] | None = None
    """For `check = "module"`: the modules that use it, all of them, in any order."""
    present: bool | None = None
    """For `check = "kvm-device"`: whether /dev/kvm is to be there; it is where nothing is said."""
    log: ExpectedLog = ExpectedLog()
    """For `check = "log"`: of all that the kernel said since the order began;
    for `inject` and `selftest`: what `may` come."""
    why: str | None = None
    """Of a check."""
    when: When = When()
    """Where it does not hold the step is left out."""
    expect: tuple[Expectation, ...] = ()
    """What it is expected to do; without any it is to succeed."""

    @property
    def action(self) -> str:
        """One of ACTIONS."""
        return next(name for name in ACTIONS if getattr(self, name) is not None)

    @property
    def grammar(self) -> Grammar:
        """What this step needs and takes."""
        return CHECKS[self.check] if self.check else ACTIONS[self.action]

    @property
    def given(self) -> dict[str, str]:
        """`params` of a load as the kernel reads them."""
        return {name: written(value) for name, value in self.params.items()}

    @property
    def read_back(self) -> dict[str, str]:
        """`params` of a check as the kernel writes them: kernel/params.c, param_get_bool() says Y or N."""
        return {name: "NY"[value] if isinstance(value, bool) else str(value) for name, value in self.params.items()}


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Parameters with which a module is loaded, each with all values that are tried."""

    module: str
    """That has them."""
    params: dict[str, tuple[Value, ...]]
    """Each with its values."""
    when: When = When()
    """Where it does not hold the table is left out."""


class FailingLoad(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A way to make the load of a module fail, whatever else is loaded."""

    module: str
    """That does not load then."""
    params: dict[str, Value]
    """With which it is loaded."""
    errno: str
    """The name of the errno that comes of it."""
    why: str
    """File and function of the kernel that make it so."""
    when: When = When()
    """Where that is so."""
    log: ExpectedLog = ExpectedLog()
    """What the kernel says."""


class Generate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All sequences of some actions with some modules, each a run of its own."""

    modules: tuple[str, ...]
    """That are loaded and unloaded."""
    length: int
    """Steps of each sequence."""
    actions: tuple[Literal["load", "unload", "fail"], ...] = ("load", "unload", "fail")
    """Of which sequences are made."""
    fail: tuple[FailingLoad, ...] = ()
    """Of a module's, the first whose `when` holds is what `fail` does with it."""
    idle: bool = False
    """Also what the loader refuses before any code of the module runs: what is there already, what is not there."""
    smoke: tuple[SmokeKind, ...] = (SmokeKind.REAL_MODE, SmokeKind.LONG_MODE)
    """Guests that run after each step that leaves the host's vendor module loaded."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A load order."""

    id: str
    """Its name, that of its file."""
    title: str
    """What it shows, in a line."""
    modules: tuple[str, ...]
    """That the artifacts must have."""
    step: tuple[Step, ...] = ()
    """What is done, in this order."""
    needs: tuple[str, ...] = ()
    """That the host must give: `a|b` one of them, `!a` not."""
    kernels: KernelRange = KernelRange()
    """For which it is."""
    parameters: tuple[str, ...] = ()
    """That the modules must have: `kvm.tdp_mmu`."""
    symbols: tuple[str, ...] = ()
    """That the modules must define."""
    look: bool = False
    """After each step the host's state is read, and what is not as it was before the step is told."""
    generate: Generate | None = None
    """In place of steps."""
    matrix: tuple[Matrix, ...] = ()
    """Each combination of all tables' values is a run of its own."""
    cover: Literal["all", "pairs"] = "all"
    """`pairs`: not all combinations, but so many that each pair of values of two parameters is in one."""

    @property
    def loads(self) -> frozenset[str]:
        """Every module that it must have or loads itself."""

        def of(steps: tuple[Step, ...]) -> set[str]:
            own = {name for step in steps for name in (step.load, step.module if step.inject else None) if name}
            return own.union(*(of(step.step) for step in steps))

        generated = self.generate.modules if self.generate else ()
        return frozenset({*self.modules, *generated, *of(self.step)})

    @property
    def selftests(self) -> frozenset[str]:
        """What it asks for of KVM's selftests."""

        def of(steps: tuple[Step, ...]) -> set[str]:
            return {name for step in steps for name in step.selftest or ()}.union(*(of(step.step) for step in steps))

        return frozenset(of(self.step))

    @property
    def many(self) -> bool:
        """Whether it is run in several ways; in how many depends on the host and the modules."""
        return bool(self.matrix) or self.generate is not None or any(step.inject for step in self.step)


def written(value: Value) -> str:
    """A parameter's value as the kernel reads it."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def kernel_name(module: str) -> str:
    """A module's name in the kernel: `kvm_intel` for `kvm-intel` (kernel/module/main.c and modpost write it so)."""
    return module.replace("-", "_")
