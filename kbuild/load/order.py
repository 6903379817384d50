"""Load orders: named lists of steps from TOML files, and what each step is expected to do (docs/orders.md)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from kbuild import toml
from kbuild.errors import UserError
from kbuild.load.protocol import errno_number
from kbuild.versions import KernelRange

Cpu = Literal["intel", "amd"]

VENDOR_MODULES: Mapping[Cpu, str] = {"intel": "kvm-intel", "amd": "kvm-amd"}
"""What `{vendor}` stands for on a host, as the file is named."""

ACTIONS = ("load", "unload", "smoke", "check")
CHECKS = ("footprint", "parameters", "kvm-device", "module")

_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_MODULE = re.compile(r"[A-Za-z0-9_-]{1,55}|\{vendor\}|\{other_vendor\}")
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NEED = re.compile(r"!?[a-z0-9][a-z0-9-]*(?:\|!?[a-z0-9][a-z0-9-]*)*")
_MODIFIERS = frozenset({"params", "module", "state", "present", "when", "expect"})


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A condition; all of its keys are to hold."""

    kernel: KernelRange | None = None
    cpu: Cpu | None = None
    has_symbol: str | None = None
    fault: str | None = None
    """The call site at which a failure was injected."""


class ExpectedLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Ids of signatures: those that have to come, and those that may."""

    must: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a step is expected to do, and why: with file and function of the kernel."""

    why: str
    when: When = When()
    errno: str | None = None
    """The name of the system call's errno; None: it succeeds."""
    log: ExpectedLog = ExpectedLog()

    @property
    def errno_number(self) -> int:
        """The positive number, or 0."""
        return 0 if self.errno is None else errno_number(self.errno)


SUCCESS = Expectation(why="a step with no expectation of its own succeeds")


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step: exactly one of `load`, `unload`, `smoke` and `check`."""

    load: str | None = None
    """A module, by its file's name without suffix."""
    unload: str | None = None
    smoke: tuple[Literal["real-mode", "long-mode"], ...] | None = None
    check: Literal["footprint", "parameters", "kvm-device", "module"] | None = None
    params: dict[str, str | int | bool] = {}
    """Of a load: what is given; of `check = "parameters"`: what /sys/module/…/parameters says."""
    module: str | None = None
    """What `check` looks at."""
    state: Literal["live", "coming", "going", "absent"] | None = None
    """For `check = "module"`: as in /sys/module/…/initstate, or that the module is not there."""
    present: bool | None = None
    """For `check = "kvm-device"`: whether /dev/kvm is to be there; it is where nothing is said."""
    when: When = When()
    """Where it does not hold the step is left out."""
    expect: tuple[Expectation, ...] = ()

    @property
    def action(self) -> str:
        """`load`, `unload`, `smoke` or `check`."""
        return next(name for name in ACTIONS if getattr(self, name) is not None)

    @property
    def parameters(self) -> dict[str, str]:
        """`params` as the kernel reads and writes them."""
        return {name: str(int(value)) if isinstance(value, bool) else str(value) for name, value in self.params.items()}


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A load order."""

    id: str
    title: str
    modules: tuple[str, ...]
    """That the artifacts must have."""
    step: tuple[Step, ...]
    needs: tuple[str, ...] = ()
    """That the host must give: `a|b` one of them, `!a` not."""
    kernels: KernelRange = KernelRange()

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, numbered from 1 in findings and transcripts."""
        return self.step


@dataclasses.dataclass(frozen=True)
class Facts:
    """What conditions are about."""

    kernel: str
    """The version, such as `6.1.192`."""
    cpu: Cpu
    has_symbol: Callable[[str], bool]
    """Whether the modules or the kernel define it; of a set: its `__contains__`."""
    fault: str | None = None


@dataclasses.dataclass(frozen=True)
class NoneHolds:
    """A step has expectations, and none of them is for these facts: it cannot be judged (ERROR)."""

    message: str


def read_order(path: Path) -> Order:
    """Read one order. Raises UserError in one line, with file and line."""
    _reject_unknown_actions(path, toml.read(path, dict[str, Any]))
    order = toml.read(path, Order)
    for keys, problem in _problems(order):
        raise _error(path, keys, problem)
    return order


def check_references(order: Order, signature_ids: Collection[str]) -> None:
    """Raise UserError when an expectation names a signature that there is not."""
    for number, step in enumerate(order.steps, 1):
        for expectation in step.expect:
            for key, names in (("must", expectation.log.must), ("may", expectation.log.may)):
                if unknown := [name for name in names if name not in signature_ids]:
                    raise UserError(
                        f"order '{order.id}', step {number}: log.{key}: there is no signature '{unknown[0]}'"
                        + _nearest(unknown[0], signature_ids)
                    )


def resolve(order: Order, cpu: Cpu) -> Order:
    """The order for a host's CPU: `{vendor}` and `{other_vendor}` filled in.

    `load` and `modules` then hold names as of files (`kvm-intel`), `unload` and `module` the kernel's (`kvm_intel`).
    """
    own, other = VENDOR_MODULES[cpu], VENDOR_MODULES["amd" if cpu == "intel" else "intel"]

    def fill(name: str) -> str:
        return name.replace("{vendor}", own).replace("{other_vendor}", other)

    def in_kernel(name: str | None) -> str | None:
        return None if name is None else kernel_name(fill(name))

    steps = tuple(
        msgspec.structs.replace(
            step,
            load=None if step.load is None else fill(step.load),
            unload=in_kernel(step.unload),
            module=in_kernel(step.module),
        )
        for step in order.steps
    )
    return msgspec.structs.replace(order, modules=tuple(map(fill, order.modules)), step=steps)


def applies(order: Order, modules: Iterable[str], gives: Collection[str], kernel: str | None = None) -> str | None:
    """Why a resolved order is skipped: a module or something of the host is missing. None: it is not.

    `modules` are the artifacts', by file or kernel name; `gives` is what the host gives (`vmx`, `ept`, …).
    """
    if kernel is not None and kernel not in order.kernels:
        return f"it is for kernels {order.kernels}, and this is {kernel}"
    there = set(map(kernel_name, modules))
    if missing := [name for name in order.modules if kernel_name(name) not in there]:
        return f"there is no {', '.join(f'{name}.ko' for name in missing)}"
    for need in order.needs:
        if not any((one.removeprefix("!") in gives) != one.startswith("!") for one in need.split("|")):
            return f"it needs {need}, and the host gives {', '.join(sorted(gives)) or 'nothing'}"
    return None


def holds(when: When, facts: Facts) -> bool:
    """Whether a condition holds."""
    return not _hindrances(when, facts)


def choose(step: Step, facts: Facts) -> Expectation | NoneHolds:
    """The first expectation whose condition holds; without any: success."""
    if not step.expect:
        return SUCCESS
    reasons: list[str] = []
    for number, expectation in enumerate(step.expect, 1):
        hindrances = _hindrances(expectation.when, facts)
        if not hindrances:
            return expectation
        reasons.append(f"{number} needs {' and '.join(hindrances)}")
    fault = f", fault {facts.fault}" if facts.fault else ""
    return NoneHolds(f"no expectation is for kernel {facts.kernel}, cpu {facts.cpu}{fault}: {'; '.join(reasons)}")


def kernel_name(module: str) -> str:
    """A module's name in the kernel: `kvm_intel` for `kvm-intel` (kernel/module/main.c and modpost write it so)."""
    return module.replace("-", "_")


def _hindrances(when: When, facts: Facts) -> list[str]:
    """The keys of a condition that do not hold."""
    hindrances: list[str] = []
    if when.kernel is not None and facts.kernel not in when.kernel:
        hindrances.append(f"kernel {when.kernel}")
    if when.cpu is not None and when.cpu != facts.cpu:
        hindrances.append(f"cpu {when.cpu}")
    if when.has_symbol is not None and not facts.has_symbol(when.has_symbol):
        hindrances.append(f"symbol {when.has_symbol}")
    if when.fault is not None and when.fault != facts.fault:
        hindrances.append(f"fault {when.fault}")
    return hindrances


def _reject_unknown_actions(path: Path, data: dict[str, Any]) -> None:
    """An action that this reader does not know gets a better answer than an unknown key would."""
    steps = data.get("step")
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        if not isinstance(step, dict):
            continue
        known = [key for key in step if key in ACTIONS]
        others = [key for key in step if key not in ACTIONS and key not in _MODIFIERS]
        if others and (not known or others[0] in ("repeat", "trace", "inject", "cpu", "reboot")):
            problem = f"action '{others[0]}' is not known here; known: {', '.join(ACTIONS)}"
            raise _error(path, f"step[{index}].{others[0]}", problem)
        check = step.get("check")
        if isinstance(check, str) and check not in CHECKS:
            problem = f"check '{check}' is not known here; known: {', '.join(CHECKS)}"
            raise _error(path, f"step[{index}].check", problem)


def _problems(order: Order) -> Iterable[tuple[str, str]]:
    """What is wrong with an order: the key, and a sentence."""
    if not _ID.fullmatch(order.id):
        yield "id", f"'{order.id}' is no id: write lower case letters and digits, parted by '-'"
    if not order.modules:
        yield "modules", "name at least one module"
    for name in order.modules:
        if problem := _bad_module(name):
            yield "modules", problem
    for need in order.needs:
        if not _NEED.fullmatch(need):
            yield "needs", f"'{need}' is no need: write 'ept', '!ept' or 'vmx|svm'"
    if not order.step:
        yield "step", "an order has at least one step"
    for index, step in enumerate(order.steps):
        for key, problem in _step_problems(step):
            yield f"step[{index}]{key}", problem


def _step_problems(step: Step) -> Iterable[tuple[str, str]]:
    actions = [name for name in ACTIONS if getattr(step, name) is not None]
    if len(actions) != 1:
        yield "", f"a step has exactly one of {', '.join(ACTIONS)}; this one has {' and '.join(actions) or 'none'}"
        return
    action = actions[0]
    for key in ("load", "unload", "module"):
        name = getattr(step, key)
        if name is not None and (problem := _bad_module(name)):
            yield f".{key}", problem
    if step.smoke is not None and not step.smoke:
        yield ".smoke", "name at least one kind"
    kind = step.check or action
    needed = {"parameters": ("module", "params"), "module": ("module", "state")}.get(kind, ())
    allowed = {"load": ("params",), "kvm-device": ("present",)}.get(kind, needed)
    said = f"check = '{kind}'" if step.check else f"'{action}'"
    for key in needed:
        if not getattr(step, key):
            yield ".check", f"{said} needs '{key}'"
    for key in ("params", "module", "state", "present"):
        if key not in allowed and getattr(step, key) not in (None, {}):
            yield f".{key}", f"{said} takes no '{key}'"
    for name, value in step.parameters.items():
        if not _PARAMETER.fullmatch(name) or not value.isascii() or not value.isprintable():
            yield ".params", f"'{name}={value}' is no parameter"
    if step.check and step.expect:
        yield ".expect[0]", "a check says itself what it expects: use 'when' of the step"
    for index, expectation in enumerate(step.expect):
        key = f".expect[{index}]"
        if not expectation.why.strip():
            yield f"{key}.why", "say why, with file and function"
        try:
            expectation.errno_number  # noqa: B018 (raises)
        except UserError as error:
            yield f"{key}.errno", str(error)
        if both := set(expectation.log.must) & set(expectation.log.may):
            yield f"{key}.log.may", f"'{both.pop()}' is in log.must too"


def _bad_module(name: str) -> str | None:
    if _MODULE.fullmatch(name):
        return None
    if "{" in name:
        return f"'{name}': the placeholders are '{{vendor}}' and '{{other_vendor}}'"
    return f"'{name}' is no module: write its file's name without '.ko'"


def _error(path: Path, keys: str, problem: str) -> UserError:
    line = toml.locate(path.read_text("utf-8"), keys)
    return UserError(f"{path}{f':{line}' if line else ''}: {keys}: {problem}")


def _nearest(name: str, known: Collection[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{near[0]}'?" if near else ""
