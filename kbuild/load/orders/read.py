"""An order's file, read and checked: what is wrong is one line with file, line and key."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from kbuild import toml
from kbuild.errors import UserError
from kbuild.load.orders.format import (
    ACTIONS,
    CHECKS,
    MODIFIERS,
    Expectation,
    ExpectedLog,
    Generate,
    Matrix,
    Order,
    Step,
    When,
    outcome_number,
    written,
)
from kbuild.load.trend import MIN_SAMPLES

MAX_LENGTH = 20
"""Of generated orders; how many there may be of all lengths is another limit."""
MAX_CPU = 1023
"""Of the agent: cpus.c."""
MAX_TEST_SECONDS = 3600
MAX_STEPS = 10_000
"""Of an order, repeats counted."""

_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_NAME = r"(?:[A-Za-z0-9_-]{1,55}|\{vendor\}|\{other_vendor\})"
_MODULE = re.compile(_NAME)
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_QUALIFIED = re.compile(rf"{_NAME}\.[A-Za-z0-9_-]{{1,64}}")
_TEST = re.compile(r"[\w.*?\[\]-]{1,100}", re.ASCII)
_NEED = re.compile(r"!?[a-z0-9][a-z0-9-]*(?:\|!?[a-z0-9][a-z0-9-]*)*")

Problems = Iterator[tuple[str, str]]
"""Keys, and a sentence about each."""


def read_order(path: Path) -> Order:
    """Read one order. Raises UserError in one line, with file and line."""
    _reject_unknown_actions(path, "step", toml.read(path, dict[str, Any]).get("step"))
    order = toml.read(path, Order)
    for keys, problem in _problems(order):
        raise _error(path, keys, problem)
    return order


def check_references(order: Order, signature_ids: Collection[str]) -> None:
    """Raise UserError when an expectation names a signature that there is not."""

    def check(steps: Iterable[Step], before: str) -> None:
        for number, step in enumerate(steps, 1):
            place = f"{before}{number}"
            for log in (step.log, *(expectation.log for expectation in step.expect)):
                for key, name in log.named:
                    if name not in signature_ids:
                        problem = f"log.{key}: there is no signature '{name}'{_nearest(name, signature_ids)}"
                        raise UserError(f"order '{order.id}', step {place}: {problem}")
            check(step.step, f"{place}.")

    check(order.step, "")
    if order.generate:
        check((Step(log=way.log) for way in order.generate.fail), "fail ")


def _reject_unknown_actions(path: Path, key: str, steps: Any) -> None:
    """An action that this reader does not know gets a better answer than an unknown key would."""
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        if not isinstance(step, dict):
            continue
        at = f"{key}[{index}]"
        known = [name for name in step if name in ACTIONS]
        others = [name for name in step if name not in ACTIONS and name not in (*MODIFIERS, "when", "expect")]
        if others and (not known):
            problem = f"action '{others[0]}' is not known here; known: {', '.join(ACTIONS)}"
            raise _error(path, f"{at}.{others[0]}", problem)
        check = step.get("check")
        if isinstance(check, str) and check not in CHECKS:
            raise _error(path, f"{at}.check", f"check '{check}' is not known here; known: {', '.join(CHECKS)}")
        _reject_unknown_actions(path, f"{at}.step", step.get("step"))


def _problems(order: Order) -> Problems:
    """What is wrong with an order."""
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
    for name in order.parameters:
        if problem := _bad_qualified(name):
            yield "parameters", problem
    for index, table in enumerate(order.matrix):
        for key, problem in _matrix_problems(table):
            yield f"matrix[{index}].{key}", problem
    if order.generate is not None:
        for key, problem in _generate_problems(order.generate):
            yield f"generate{key}", problem
        if order.step:
            yield "step", "steps are generated here: an order has either [[step]] or [generate]"
    elif not order.step:
        yield "step", "an order has at least one step"
    yield from _steps_problems("step", order.step)
    yield from _inject_problems(order)
    if _uses_cpus(order.step) and "smp" not in order.needs:
        yield "step", "'cpu', 'on_cpu' and 'together' want a host with several CPUs: write needs = ['smp']"
    if (missing := _drift_without_samples(order.step)) is not None:
        yield "step", f"'drift' comes behind {missing} of check = 'memory', repeats counted: it takes {MIN_SAMPLES}"
    if (count := _count(order.step)) > MAX_STEPS:
        yield "step", f"these are {count} steps, repeats counted; an order has at most {MAX_STEPS}"


def _uses_cpus(steps: Iterable[Step]) -> bool:
    return any(
        step.cpu is not None or step.on_cpu is not None or step.together or _uses_cpus(step.step) for step in steps
    )


def _inject_problems(order: Order) -> Problems:
    """One step is swept at most: what is before it is done once in a guest, what follows once for each call site."""
    places = [at for at, step in enumerate(order.step) if step.inject]
    if places and order.matrix:
        yield "matrix", "an order with 'inject' has no matrix: write the parameters into its steps"
    for at in places[1:]:
        yield f"step[{at}].inject", "an order has one 'inject' at most: write an order for each"
    for at, step in enumerate(order.step):
        for inner in step.step:
            if inner.inject:
                yield f"step[{at}].step", "'inject' is a repetition already, and no part of another one"
        if places and at < places[0] and step.action not in ("load", "unload"):
            yield f"step[{at}].{step.action}", "before 'inject' there are only loads and unloads"
    for at, step in enumerate(order.step[: places[0] + 1 if places else None]):
        if _asks_of_fault(step):
            yield f"step[{at}]", "'fault' is known behind 'inject' only, where it is what has failed"
    for at, step in enumerate(order.step[:-1]):
        if step.reboot:
            yield f"step[{at}].reboot", "nothing can follow: this is the end of the order's guest"


def _asks_of_fault(step: Step) -> bool:
    conditions = [step.when, *(one.when for one in step.expect), *(one.when for one in step.tolerate)]
    return any(when.fault is not None for when in conditions) or any(map(_asks_of_fault, step.step))


def _generate_problems(asked: Generate) -> Problems:
    if not 1 <= asked.length <= MAX_LENGTH:
        yield ".length", f"{asked.length} is no number of steps: write 1 to {MAX_LENGTH}"
    for key in ("modules", "actions"):
        names = getattr(asked, key)
        if not names or len({*names}) != len(names):
            yield f".{key}", "name at least one, each once"
    for name in asked.modules:
        if problem := _bad_module(name):
            yield ".modules", problem
    if ("fail" in asked.actions) != bool(asked.fail):
        yield ".actions", "'fail' among the actions and [[generate.fail]], which says how, belong together"
    for index, way in enumerate(asked.fail):
        # It is a load with an expectation, and has to be as right as one.
        expectation = Expectation(errno=way.errno, log=way.log, why=way.why)
        step = Step(load=way.module, params=way.params, when=way.when, expect=(expectation,))
        for key, problem in _step_problems(step):
            inner = key.replace(".load", ".module").replace(".expect[0]", "")
            yield f".fail[{index}]{inner}", problem
        if way.module not in asked.modules:
            yield f".fail[{index}].module", f"'{way.module}' is none of the modules above"


def _matrix_problems(table: Matrix) -> Problems:
    if problem := _bad_module(table.module):
        yield "module", problem
    for name, values in table.params.items():
        if not values or len({*map(written, values)}) != len(values):
            yield f"params.{name}", "write a list of values, each once: [0, 1]"
        for value in values:
            if problem := _bad_parameter(name, written(value)):
                yield f"params.{name}", problem
    for key, problem in _when_problems(table.when):
        yield f"when{key}", problem
    if table.when.given:
        yield "when.given", "a matrix cannot depend on what a matrix gives"


def _count(steps: Iterable[Step]) -> int:
    return sum((step.repeat or 1) * _count(step.step) if step.step else 1 for step in steps)


def _traces(steps: Iterable[Step]) -> bool:
    return any(step.trace is not None or _traces(step.step) for step in steps)


def _drift_without_samples(steps: Iterable[Step]) -> int | None:
    """How many samples there are where they are judged, if these are too few."""
    samples = 0
    for step in steps:
        if step.check == "drift" and samples < MIN_SAMPLES:
            return samples
        if step.repeat:
            samples += step.repeat * sum(inner.check == "memory" for inner in step.step)
        samples += step.check == "memory"
    return None


def _steps_problems(key: str, steps: Iterable[Step]) -> Problems:
    for index, step in enumerate(steps):
        for inner, problem in _step_problems(step):
            yield f"{key}[{index}]{inner}", problem


def _step_problems(step: Step) -> Problems:
    actions = [name for name in ACTIONS if getattr(step, name) is not None]
    if len(actions) != 1:
        yield "", f"a step has exactly one of {', '.join(ACTIONS)}; this one has {' and '.join(actions) or 'none'}"
        return
    yield from _grammar_problems(step)
    yield from _cpu_problems(step)
    for key, names in _names(step):
        for name in names:
            if problem := _bad_module(name):
                yield f".{key}", problem
    if step.smoke is not None and not step.smoke:
        yield ".smoke", "name at least one kind"
    if step.selftest is not None and not (step.selftest and all(map(_TEST.fullmatch, step.selftest))):
        yield ".selftest", "name tests as their programs are called, or globs of such names"
    if step.seconds is not None and not 1 <= step.seconds <= MAX_TEST_SECONDS:
        yield ".seconds", f"{step.seconds} is no number of seconds: write 1 to {MAX_TEST_SECONDS}"
    if step.trace is not None and not step.trace:
        yield ".trace", "name at least one module"
    if step.trace is not None and _traces(step.step):
        yield ".step", "there is one tracer: a trace holds no other one"
    if step.repeat is not None and step.repeat < 1:
        yield ".repeat", f"{step.repeat} is no number of times: write 1 or more"
    for name, value in {**step.given, **step.read_back}.items():
        if problem := _bad_parameter(name, value):
            yield ".params", problem
    for key, problem in _when_problems(step.when):
        yield f".when{key}", problem
    for index, one in enumerate(step.tolerate):
        for key, said in (("site", one.site), ("source", one.source), ("reason", one.reason)):
            if not said.strip():
                yield (
                    f".tolerate[{index}].{key}",
                    "say which call site, where in the source, and why the load may go on",
                )
        for key, problem in _when_problems(one.when):
            yield f".tolerate[{index}].when{key}", problem
    if step.inject and (step.log.must or step.log.must_not):
        yield ".log", "what the log says depends on which allocation fails: 'inject' takes log.may only"
    if step.selftest and (step.log.must or step.log.must_not):
        yield ".log", "each of several tests would have to say it: 'selftest' takes log.may only"
    if (step.inject or step.selftest) and step.log.may and not step.why:
        yield ".log", "say 'why' these may follow"
    if step.tolerate and step.inject != "load":
        yield ".tolerate", "an unload succeeds whatever fails: there is nothing to tolerate"
    for key, problem in _log_problems(step.log):
        yield f".{key}", problem
    if step.why is not None and not step.why.strip():
        yield ".why", "say why, with file and function"
    if step.expect and not step.grammar.expects:
        yield ".expect[0]", f"a {step.action} says itself what it expects: use 'when' of the step"
    for index, expectation in enumerate(step.expect):
        key = f".expect[{index}]"
        if not expectation.why.strip():
            yield f"{key}.why", "say why, with file and function"
        try:
            expectation.errno_number  # noqa: B018 (raises)
        except UserError as error:
            yield f"{key}.errno", str(error)
        for inner, problem in _when_problems(expectation.when):
            yield f"{key}.when{inner}", problem
        for inner, problem in _log_problems(expectation.log):
            yield f"{key}.{inner}", problem
    yield from _steps_problems(".step", step.step)


_PARTS = ("load", "unload", "cpu")
"""Actions that can be done at the same time as others."""
MAX_PARTS = 4


def _cpu_problems(step: Step) -> Problems:
    """Steps that are about CPUs, or done by several at once."""
    numbers = [step.on_cpu, *((step.cpu.offline, step.cpu.online) if step.cpu else ())]
    if any(number is not None and not 0 <= number <= MAX_CPU for number in numbers):
        yield "", f"a CPU's number is from 0 to {MAX_CPU}"
    if step.cpu and (step.cpu.offline is None) == (step.cpu.online is None):
        yield ".cpu", "write either { offline = 1 } or { online = 1 }"
    for index, expectation in enumerate(step.expect):
        if expectation.errnos and (expectation.errno or not step.together):
            yield f".expect[{index}].errnos", "only 'together' has several, and then no other one"
        if step.together and not expectation.errnos:
            yield f".expect[{index}]", "say in 'errnos' what may come of the steps: [['success', 'EEXIST']]"
        for outcome in expectation.errnos:
            if len(outcome) != len(step.step):
                yield f".expect[{index}].errnos", f"there are {len(step.step)} steps, and {len(outcome)} outcomes"
            for name in outcome:
                try:
                    outcome_number(name)
                except UserError as error:
                    yield f".expect[{index}].errnos", str(error)
    if not step.together:
        return
    if not 2 <= len(step.step) <= MAX_PARTS:
        yield ".step", f"these are {len(step.step)} steps: from 2 to {MAX_PARTS} can be done at once"
    for index, part in enumerate(step.step):
        if part.action not in _PARTS:
            yield f".step[{index}]", f"only {', '.join(_PARTS)} can be done at the same time as others"
        if part.expect:
            yield f".step[{index}].expect[0]", "what may come of all of them is expected of 'together'"
        if part.when != When():
            yield f".step[{index}].when", "a part cannot be left out: put it to 'together'"
        if part.on_cpu is None:
            yield f".step[{index}]", "say with 'on_cpu' which CPU does it"


def _grammar_problems(step: Step) -> Problems:
    """Keys that are missing, and keys that mean nothing here."""
    grammar = step.grammar
    there = {key for key in MODIFIERS if getattr(step, key) not in (None, {}, (), ExpectedLog()) or _said(step, key)}
    said = f"check = '{step.check}'" if step.check else f"'{step.action}'"
    for key in grammar.needs:
        if key not in there:
            yield f".{step.action}", f"{said} needs '{key}'"
    if grammar.one_of and not there & {*grammar.one_of}:
        *first, last = (f"'{key}'" for key in grammar.one_of)
        yield f".{step.action}", f"{said} needs {', '.join(first)} or {last}"
    for key in MODIFIERS:
        if key in there and key not in grammar.keys:
            yield f".{key}", f"{said} takes no '{key}'"


def _said(step: Step, key: str) -> bool:
    """An empty list of holders says something: there are none."""
    return key == "holders" and step.holders is not None


def _names(step: Step) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The modules that a step names, by key."""
    for key in ("load", "unload", "module"):
        if (name := getattr(step, key)) is not None:
            yield key, (name,)
    for key in ("holders", "trace"):
        yield key, getattr(step, key) or ()


def _when_problems(when: When) -> Problems:
    if when.gives is not None and not _NEED.fullmatch(when.gives):
        yield ".gives", f"'{when.gives}' is nothing that a host gives: write 'ept', '!ept' or 'vmx|svm'"
    if when.has_parameter is not None and (problem := _bad_qualified(when.has_parameter)):
        yield ".has_parameter", problem
    for name in when.given:
        if problem := _bad_qualified(name):
            yield ".given", problem


def _log_problems(log: ExpectedLog) -> Problems:
    seen: dict[str, str] = {}
    for key, name in log.named:
        if seen.setdefault(name, key) != key:
            yield f"log.{key}", f"'{name}' is in log.{seen[name]} too"


def _bad_module(name: str) -> str | None:
    if _MODULE.fullmatch(name):
        return None
    if "{" in name:
        return f"'{name}': the placeholders are '{{vendor}}' and '{{other_vendor}}'"
    return f"'{name}' is no module: write its file's name without '.ko'"


def _bad_parameter(name: str, value: str) -> str | None:
    if _PARAMETER.fullmatch(name) and value.isascii() and value.isprintable():
        return None
    return f"'{name}={value}' is no parameter"


def _bad_qualified(name: str) -> str | None:
    if _QUALIFIED.fullmatch(name):
        return None
    return f"'{name}' is no module's parameter: write 'kvm.tdp_mmu' or '{{vendor}}.nested'"


def _error(path: Path, keys: str, problem: str) -> UserError:
    line = toml.locate(path.read_text("utf-8"), keys)
    return UserError(f"{path}{f':{line}' if line else ''}: {keys}: {problem}")


def _nearest(name: str, known: Collection[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{near[0]}'?" if near else ""
