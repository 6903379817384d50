"""Rules that are answered from the files as they are: where a symbol is, which sections there are, and sizes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kbuild.elf.image import ModuleImage
from kbuild.elf.layout import part_sizes
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.names import stem
from kbuild.elf.rules.spec import VENDOR, BudgetRule, SectionRule, SymbolRule
from kbuild.elf.types import Types
from kbuild.outcome import Status

Rule = SymbolRule | SectionRule | BudgetRule
Answer = Literal["proved", "violated", "unknown", "unreached"]


@dataclass(frozen=True)
class Said:
    """A rule's answer for a module."""

    rule: Rule
    module: str
    status: Status
    answer: Answer | None
    """None: it was not asked."""
    why: str


def answers(modules: ModuleSet, rule: Rule, vendors: Sequence[str], types: Types) -> Iterator[Said]:
    """What a rule says of each module that it is asked of. `vendors`: the vendor modules. Raises UserError."""
    missing = "no module of the set is a vendor module"
    if rule.module is None:
        asked = list(modules.modules.values())
    elif rule.module == VENDOR:
        asked = [modules[name] for name in vendors]
    else:
        asked = [modules[rule.module]] if rule.module in modules else []
        missing = f"the set has no module {rule.module}"
    if not asked:
        place = "set" if rule.module in (None, VENDOR) else str(rule.module)
        yield Said(rule, place, Status.SKIP, None, missing)
    elif isinstance(rule, BudgetRule) and rule.module is None and rule.of is None:
        # What has a name is in one module or another; that it is in none of them is said once.
        every = [_budget(image, rule, types) for image in asked]
        found = [said for said in every if said.answer not in ("unknown", "unreached")]
        yield from found or [replace(every[0], module="set", why="; ".join(dict.fromkeys(one.why for one in every)))]
    else:
        for image in asked:
            if isinstance(rule, BudgetRule):
                yield _budget(image, rule, types)
            else:
                yield _section(image, rule) if isinstance(rule, SectionRule) else _symbol(image, rule)


def _symbol(image: ModuleImage, rule: SymbolRule) -> Said:
    names = {section.index: section.name for section in image.sections}
    places = {names[one.section] for one in image.symbols if one.name == rule.name and one.section in names}
    if not places:
        status = Status.PASS if rule.optional else Status.FAIL
        return Said(rule, image.name, status, "unreached", f"there is no {rule.name}")
    if all(fnmatch.fnmatchcase(place, rule.section) for place in places):
        return Said(rule, image.name, Status.PASS, "proved", f"{rule.name} is in {rule.section}")
    why = f"{rule.name} is in {', '.join(sorted(places))}, not in {rule.section}"
    return Said(rule, image.name, Status.FAIL, "violated", why)


def _section(image: ModuleImage, rule: SectionRule) -> Said:
    sizes: dict[str, int] = {}
    for section in image.sections:
        if section.size and fnmatch.fnmatchcase(section.name, rule.name):
            sizes[section.name] = sizes.get(section.name, 0) + section.size
    there = ", ".join(f"{name} ({size} bytes)" for name, size in sizes.items())
    if rule.present is not None and rule.present is not bool(sizes):
        why = f"it has {there}" if sizes else f"it has no {rule.name}"
        return Said(rule, image.name, Status.FAIL, "violated", why)
    if rule.max_bytes is not None:
        what = there if len(sizes) > 1 else f"no {rule.name}" if not sizes else next(iter(sizes))
        return _held(rule, image.name, what, sum(sizes.values()), rule.max_bytes)
    return Said(rule, image.name, Status.PASS, "proved", f"it has {there}" if sizes else f"it has no {rule.name}")


def _budget(image: ModuleImage, rule: BudgetRule, types: Types) -> Said:
    if rule.struct is not None:
        layout = types.struct(image, rule.struct)
        what, size = f"{layout.kind} {layout.name}", layout.size
        absent, why = f"there is no struct {layout.name}", layout.why or "its size is not known"
    elif rule.function is not None:
        what, size = f"{rule.function}()", _function_size(image, rule.function)
        absent, why = f"there is no {what}", f"no function is called {rule.function}: misspelt, or inlined"
    else:
        what, size = rule.of or "", part_sizes(image)[rule.of or ""]
        absent = why = ""
    if size is not None:
        return _held(rule, image.name, what, size, rule.max_bytes)
    if rule.optional:
        return Said(rule, image.name, Status.PASS, "unreached", absent)
    return Said(rule, image.name, Status.ERROR, "unknown", why)


def _function_size(image: ModuleImage, name: str) -> int | None:
    """Bytes of all functions of that name, with the parts that the compiler has made of them."""
    code = {section.index for section in image.sections if "X" in section.flags}
    places = {
        (one.section, one.value): one.size
        for one in image.symbols
        if one.kind == "func" and one.section in code and stem(one.name) == name
    }
    return sum(places.values()) if places else None


def _held(rule: SectionRule | BudgetRule, module: str, what: str, size: int, limit: int) -> Said:
    if size > limit:
        why = f"{what} has {size} bytes, {size - limit} more than {limit}"
        return Said(rule, module, Status.FAIL, "violated", why)
    return Said(rule, module, Status.PASS, "proved", f"{what} has {size} bytes of at most {limit}")
