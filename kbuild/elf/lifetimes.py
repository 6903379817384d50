"""Findings about lifetime: what stays in memory when init has returned must not refer to what is gone then.

modpost looks for this too, but lets pass what has one of some names (`*_ops`, `*_probe`, `__param*`, secref_whitelist()
in scripts/mod/modpost.c), does not look into `.rodata`, and sees one module at a time. Here it is asked of every place,
and answered by who uses it: docs/inspect.md says what is a violation.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbuild.elf.contents import MalformedError
from kbuild.elf.findings import new_finding
from kbuild.elf.image import ModuleImage
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.object import ElfObject, Symbol
from kbuild.elf.references import InitReference, references_to_symbols
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status

if TYPE_CHECKING:  # The decoder takes longer to load than most modules take to be judged.
    from kbuild.elf.code.follow import Place, Uses
    from kbuild.elf.code.uses import Code, Thing

_POINTER = 8
_PARAMETER_BYTES = 40
_PARAMETER_MODE = 24
"""`perm` of struct kernel_param (include/linux/moduleparam.h): 0 means that it is not in sysfs."""
_COMPILERS_SUFFIX = re.compile(r"(\.(constprop|isra|part|cold|\d+))+$")
"""Numbers that change when something else in the file does have no place in an id."""
_MAX_WORK = 1 << 18
"""Pointers, each by all uses of its object; real modules need some hundred."""
_DECLARED = ".ref."
"""Sections of `__ref`, `__refdata` and `__refconst` (include/linux/init.h): the kernel says that it is in order."""


@dataclass(frozen=True)
class _Reference:
    """One reference, in words."""

    rule: str
    who: str
    who_section: str
    what: str
    what_section: str


def lifetimes(modules: ModuleSet) -> Iterator[Finding]:
    """All findings about lifetime of a set. Raises UserError where a file contradicts itself."""
    init_exports: dict[str, str] = {}
    for module in modules.modules.values():
        exported = {export.name for export in module.exports}
        sections = {section.index: section.name for section in module.sections if section.part == "init"}
        for symbol in module.symbols:
            if symbol.section in sections and symbol.name in exported and symbol.binding != "local":
                init_exports[symbol.name] = sections[symbol.section]
                text = f"{module.name} exports {symbol.name}, which is gone when its init has returned"
                line = f"{symbol.name} ({sections[symbol.section]}) is exported"
                yield new_finding("lifetime-export", Status.FAIL, module.name, symbol.name, text, [line])
    for module in modules.modules.values():
        foreign = _imported(modules, module, init_exports)
        suspects = _suspects(module)
        if not module.init_references and not foreign and not suspects:
            continue
        try:
            elf = module.object()
            yield from _inside(module, elf)
            yield from _across(module, elf, foreign, init_exports)
            yield from _handed_on(modules, module, elf, suspects)
        except MalformedError as problem:
            raise UserError(f"{module.path}: {problem}") from None


def _imported(modules: ModuleSet, module: ModuleImage, init_exports: dict[str, str]) -> dict[str, str]:
    """What a module imports from other modules' init part, with the module."""
    wanted = [used.name for used in module.imports if used.name in init_exports]
    given = {name: modules.provider(module, name) for name in wanted}
    return {name: provider.name for name, provider in given.items() if provider.by == "module" and provider.name}


def _inside(module: ModuleImage, elf: ElfObject) -> Iterator[Finding]:
    """What a module says of its own init part. The same names twice are one finding."""
    if not module.init_references:
        return
    from kbuild.elf.code.uses import Code

    code = Code(elf)
    found: dict[str, tuple[Status, _Reference, list[str]]] = {}
    pointers: dict[Thing, list[InitReference]] = {}
    work = _MAX_WORK
    for one in module.init_references:
        section = elf.sections[one.section]
        if "X" not in section.flags:
            pointers.setdefault(code.thing(one.section, one.offset), []).append(one)
            continue
        reference = _of_code(code, one)
        status = Status.DONE if section.name.startswith(_DECLARED) else Status.FAIL
        _add(found, status, reference, ["declared with __ref"] if status is Status.DONE else [])
    for thing, references in pointers.items():
        offsets = [one.offset - thing.start for one in references]
        step = math.gcd(*(offset - offsets[0] for offset in offsets))
        for one, offset in zip(references, offsets, strict=True):
            work -= len(code.uses(thing))
            if thing.section.name.startswith(_DECLARED):
                status, lines = Status.DONE, ["declared with __refdata or __refconst"]
            elif work < 0:
                status, lines = Status.FAIL, ["there are too many uses to look at each"]
            else:
                status, lines = _Judge(code).of_pointer(thing, offset, step)
            if status is not Status.PASS:
                _add(found, status, _of_data(code, thing, one), lines)
    yield from _findings(module, found)


def _across(
    module: ModuleImage, elf: ElfObject, foreign: dict[str, str], init_exports: dict[str, str]
) -> Iterator[Finding]:
    """Also init code: a module that it imports from has long been through its own init (resolve_symbol() waits)."""
    if not foreign:
        return
    from kbuild.elf.code.uses import Code

    code = Code(elf)
    found: dict[str, tuple[Status, _Reference, list[str]]] = {}
    numbers = {n for n, symbol in enumerate(elf.symbols) if not symbol.defined and symbol.name in foreign}
    for section, offset, _, number, _ in references_to_symbols(elf, numbers):
        name = elf.symbols[number].name
        owner = code.owners.of(section.index, offset)
        who, whose = code.label(*owner), elf.sections[owner[0]].name
        rule = code.kind(section.index, offset)
        _add(found, Status.FAIL, _Reference(rule, who, whose, name, f"{init_exports[name]} of {foreign[name]}"), [])
    yield from _findings(module, found)


_Suspects = list[tuple[InitReference, InitReference]]
"""A pointer to init code in an object of init data; a pointer to that object in another one."""


def _suspects(module: ModuleImage) -> _Suspects:
    """Tables of init data that could be copied to where they stay: `runtime_ops` in struct kvm_x86_init_ops."""
    code = {section.index for section in module.sections if "X" in section.flags}
    calls = [one for one in module.init_pointers if module.symbols[one.symbol - 1].section in code]
    data = [one for one in module.init_pointers if module.symbols[one.symbol - 1].section not in code]
    if not calls or not data:
        return []
    objects: dict[int, list[Symbol]] = {}
    for symbol in module.symbols:
        if symbol.section is not None and symbol.kind == "object":
            objects.setdefault(symbol.section, []).append(symbol)
    for symbols in objects.values():
        symbols.sort(key=lambda one: one.value)

    def at(section: int | None, offset: int) -> Symbol | None:
        symbols = objects.get(section or 0, [])
        index = bisect.bisect_right(symbols, offset, key=lambda one: one.value) - 1
        return symbols[index] if index >= 0 and offset < symbols[index].value + symbols[index].size else None

    holders: dict[Symbol, dict[Symbol | None, InitReference]] = {}
    for one in data:
        symbol = module.symbols[one.symbol - 1]
        target, holder = at(symbol.section, symbol.value + one.addend), at(one.section, one.offset)
        if target is not None and target is not holder:
            holders.setdefault(target, {}).setdefault(holder, one)
    found: _Suspects = []
    for call in calls:
        table = at(call.section, call.offset)
        found += [(call, one) for one in (holders.get(table, {}) if table else {}).values()]
    return found


def _handed_on(modules: ModuleSet, module: ModuleImage, elf: ElfObject, suspects: _Suspects) -> Iterator[Finding]:
    """Tables that another module is shown by a pointer in what init code calls it with.

    What is given directly may be for init alone, as struct kvm_x86_init_ops is; what that names is there to be kept.
    """
    if not suspects:
        return
    from kbuild.elf.code.uses import Code

    code = Code(elf)
    found: dict[str, tuple[Status, _Reference, list[str]]] = {}
    for call, pointer in suspects:
        holder = code.thing(pointer.section, pointer.offset)
        for use in code.uses(holder):
            for callee in use.code.callees if use.code else ():
                provider = modules.provider(module, callee)
                if provider.by == "module":
                    line = f"{holder.name} points to it, and {use.who} passes that to {callee} of {provider.name}"
                    table = code.thing(call.section, call.offset)
                    _add(found, Status.FAIL, _of_data(code, table, call), [line])
    yield from _findings(module, found)


def _add(
    found: dict[str, tuple[Status, _Reference, list[str]]], status: Status, one: _Reference, lines: list[str]
) -> None:
    key = f"{one.rule}:{_COMPILERS_SUFFIX.sub('', one.who)}-{_COMPILERS_SUFFIX.sub('', one.what)}"
    line = f"{one.who} ({one.who_section}) refers to {one.what} ({one.what_section})"
    old = found.get(key)
    if old is not None:
        lines = [*old[2], *(text for text in (line, *lines) if text not in old[2])]
        status = Status.FAIL if Status.FAIL in (old[0], status) else status
    else:
        lines = [line, *lines]
    found[key] = (status, one, lines)


_VERBS = {"lifetime-call": "calls", "lifetime-address": "refers to", "lifetime-data": "points to"}


def _findings(module: ModuleImage, found: dict[str, tuple[Status, _Reference, list[str]]]) -> Iterator[Finding]:
    for key, (status, one, lines) in found.items():
        rule, _, cause = key.partition(":")
        harm = "which is gone when init has returned" if status is Status.FAIL else "which does no harm"
        text = f"{module.name}: {one.who} ({one.who_section}) {_VERBS[rule]} {one.what} ({one.what_section}), {harm}"
        yield new_finding(rule, status, module.name, cause, text, lines)


def _of_code(code: Code, one: InitReference) -> _Reference:
    section, offset = code.target(one.section, one.offset, one.symbol, one.addend)
    return _Reference(
        code.kind(one.section, one.offset),
        code.label(one.owner, one.owner_offset),
        code.elf.sections[one.owner].name,
        code.label(section, offset),
        code.elf.sections[section].name,
    )


def _of_data(code: Code, thing: Thing, one: InitReference) -> _Reference:
    section, offset = code.target(one.section, one.offset, one.symbol, one.addend)
    who, what = thing.name or thing.section.name, code.label(section, offset)
    return _Reference("lifetime-data", who, thing.section.name, what, code.elf.sections[section].name)


class _Judge:
    """Whether a pointer that stays can do harm, by all uses of the object that it is in."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._seen: set[Thing] = set()

    def of_pointer(self, thing: Thing, offset: int, step: int) -> tuple[Status, list[str]]:
        """FAIL, DONE for what stays and does no harm, or PASS where only init uses the object; and why.

        `offset`: of the pointer, from the object's beginning. `step`: from one such pointer to the next, 0 for one
        alone; then an index of unknown value may lead to it from anywhere.
        """
        self._seen.add(thing)
        harm: list[str] = []
        other: list[str] = []
        uses = self._code.uses(thing)
        for use in uses:
            where = f"{use.who} ({use.section.name})"
            if use.code is None:
                if use.init:  # Which may be copied: kvm_ops_update() does, and so has `nested_ops`.
                    harm.append(f"{where} points to it, and may be copied")
                elif lines := self._by_data(use.section.index, use.offset, offset, step):
                    harm += [f"{where} points to it", *lines]
                continue
            if use.init and (emptied := _emptied(use.code, offset, step)):
                return Status.DONE, [f"{where} {how}" for how in emptied]
            lines = [f"{where} {how}" for how in _harm(use.init, use.code, offset, step)]
            harm += lines
            if not use.init and not lines:
                other.append(f"{where} uses other parts of the same object")
        if thing.section.name == "__param" and self._mode(thing.section.index, thing.start + offset):
            harm.append("it is a parameter in sysfs")
        elif not uses and thing.section.name != "__param":
            harm.append("no use of it is seen in this module")
        if harm:
            return Status.FAIL, list(dict.fromkeys(harm))
        return (Status.DONE, list(dict.fromkeys(other))) if other else (Status.PASS, [])

    def _by_data(self, section: int, slot: int, offset: int, step: int) -> list[str]:
        """Why a pointer that stays can do harm, if it is to what has a pointer to the init part at an offset."""
        holder = self._code.thing(section, slot)
        if holder in self._seen:
            return []
        self._seen.add(holder)
        slot -= holder.start
        if holder.section.name == "__param":
            return ["it is a parameter in sysfs"] if self._mode(section, holder.start + slot) else []
        lines = []
        for use in self._code.uses(holder):
            where = f"{use.who} ({use.section.name})"
            if use.code is None:
                lines += [] if use.init else [f"{where} points to that"]
                continue
            lines += [f"{where} {how}" for how in (*use.code.given, *(() if use.init else use.code.lent))]
            for read in use.code.reads if not use.init else ():
                if read.compares or not _meets(read.place, read.size, slot, 0):
                    continue
                through = self._code.pointer_uses(read.load) if read.load else None
                hows = _harm(use.init, through, offset, step) if through else ["reads it"]
                lines += [f"{where} {how} through that" for how in hows]
        return list(dict.fromkeys(lines))

    def _mode(self, section: int, offset: int) -> int:
        entry = offset // _PARAMETER_BYTES * _PARAMETER_BYTES
        data = self._code.elf.content(self._code.elf.sections[section])[entry : entry + _PARAMETER_BYTES]
        return int.from_bytes(data[_PARAMETER_MODE : _PARAMETER_MODE + 2], "little")


def _emptied(uses: Uses, offset: int, step: int) -> list[str]:
    """How init code puts something else into the place of a pointer at an offset, once it has made use of it.

    Without that use it may well be an `if` that decides whether something else comes there.
    """
    wrote = any(size == _POINTER and _meets(place, size, offset, step) for place, size in uses.writes)
    read = any(_meets(read.place, read.size, offset, step) for read in uses.reads)
    return uses.emptied or (["reads it, then writes over it"] if wrote and read else [])


def _harm(init: bool, uses: Uses, offset: int, step: int) -> list[str]:
    """What code does with an object that may make use of its pointer at an offset when that leads nowhere any more."""
    if init:
        return uses.given
    reads = any(not read.compares and _meets(read.place, read.size, offset, step) for read in uses.reads)
    return [*uses.given, *uses.lent, *uses.emptied, *(["reads it"] if reads else [])]


def _meets(place: Place, size: int, offset: int, step: int) -> bool:
    """Whether an access to `size` bytes at a place can be one to a pointer at an offset."""
    distance = offset - place.offset
    if not place.any_element:
        return -_POINTER < distance < size
    return not step or distance % step < size or -distance % step < _POINTER
