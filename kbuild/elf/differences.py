"""What is different between two builds of modules: takes two inspections, as they are or as data, gives data.

Names are compared without the numbers that a compiler adds, which change when something else in the file does.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from kbuild.elf.contents import MalformedError
from kbuild.elf.inspect import Inspection, to_json
from kbuild.elf.names import plain_name
from kbuild.elf.tree.differences import flow_differences
from kbuild.errors import UserError

Data = Mapping[str, Any]

_COMPILERS_OWN = re.compile(
    r"__UNIQUE_ID_|\.L|__pfx_|__cfi_|__ksymtab_|__kstrtab|__crc_|__flags_|__export_symbol_|_note_\d"
    r"|(__func__|__PRETTY_FUNCTION__|__key|_rs|__already_done|__warned|__compound_literal|__already_printed)(\.|$)"
)
"""Symbols that stand for something that is compared by itself, or for nothing that a person has given a name."""


def compare(before: Inspection, after: Inspection) -> dict[str, Any]:
    """`differences`, and `code` of each module: functions of the same name and size that have other instructions."""
    from kbuild.elf.code.link import Program
    from kbuild.elf.codechanges import code_changes

    found = differences(*(msgspec.to_builtins(to_json(one, layout=False)) for one in (before, after)))
    try:
        changed = code_changes(Program(before.modules), Program(after.modules))
    except MalformedError as error:
        raise UserError(f"the code of these modules cannot be compared: {error}") from None
    for module in found["modules"]:
        module["code"] = changed.get(module["name"], [])
        if module["code"] and module["change"] == "bytes":
            module["change"] = "changed"
    return found


def differences(before: Data, after: Data) -> dict[str, Any]:
    """`before` and `after` are inspections as data. An empty list says that there is no difference of that kind."""
    old, new = ({module["kernel_name"]: module for module in side["modules"]} for side in (before, after))
    modules = []
    for name in sorted({*old, *new}):
        if name not in new:
            modules.append({"name": old[name]["name"], "change": "went"})
        elif name not in old:
            modules.append({"name": new[name]["name"], "change": "came"})
        else:
            modules.append(_module(old[name], new[name]))
    _follow_between_modules(modules)
    return {
        "modules": modules,
        "flow": flow_differences(before["flow"] or (), after["flow"] or ()),
        "findings": _findings(before["findings"], after["findings"]),
    }


def is_empty(found: Data) -> bool:
    """Whether nothing differs."""
    same = all(module["change"] == "same" for module in found["modules"])
    return same and not found["findings"] and not found["flow"]


def _module(old: Data, new: Data) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": new["name"],
        "change": "same",
        "bytes": {
            part: [old["bytes"][part], new["bytes"][part]]
            for part in new["bytes"]
            if old["bytes"][part] != new["bytes"][part]
        },
        "symbols": _symbols(old["symbols"], new["symbols"]),
        "sections": _named(_loaded(old), _loaded(new), ("part", "flags")),
        "exports": _named(old["exports"], new["exports"], ("gpl", "namespace")),
        "imports": _named(old["imports"], new["imports"], ("by", "provider", "weak")),
        "parameters": _named(old["parameters"], new["parameters"], ("type",)),
        "depends": _lists(old["depends"], new["depends"]),
        "traits": _lists(old["traits"], new["traits"]),
    }
    if old["sha256"] != new["sha256"]:
        shown = any(
            found[key] for key in ("bytes", "symbols", "sections", "exports", "imports", "parameters", "depends")
        )
        found["change"] = "changed" if shown or found["traits"] else "bytes"
    return found


def _loaded(module: Data) -> list[Data]:
    return [section for section in module["sections"] if section["part"] != "not loaded" and section["size"]]


def _symbols(old: Iterable[Data], new: Iterable[Data]) -> list[dict[str, Any]]:
    """Functions and objects that came, went, are in another section, or have another size."""
    before, after = _places(old), _places(new)
    found: list[dict[str, Any]] = []
    for name in sorted({*before, *after}):
        gone = sorted((before.get(name, Counter()) - after.get(name, Counter())).elements())
        there = sorted((after.get(name, Counter()) - before.get(name, Counter())).elements())
        # Of several of one name, those in the same section belong together first.
        waiting: dict[tuple[str, str], deque[_Place]] = {}
        for one in there:
            waiting.setdefault(one[:2], deque()).append(one)
        others: list[_Place] = []
        for was in gone:
            if same := waiting.get(was[:2]):
                found.append(_symbol("resized", name, was, same.popleft()))
            else:
                others.append(was)
        gone, there = others, [one for some in waiting.values() for one in some]
        pairs = min(len(gone), len(there))
        found += [_symbol("moved", name, was, now) for was, now in zip(gone, there, strict=False)]
        found += [_symbol("went", name, was, None) for was in gone[pairs:]]
        found += [_symbol("came", name, None, now) for now in there[pairs:]]
    return found


_Place = tuple[str, str, int]
"""Kind, section, size."""


def _places(symbols: Iterable[Data]) -> dict[str, Counter[_Place]]:
    found: dict[str, Counter[_Place]] = {}
    for one in symbols:
        if one["defined"] and one["kind"] in ("func", "object") and not _COMPILERS_OWN.match(one["name"]):
            place = (one["kind"], one["section"] or "", one["size"])
            found.setdefault(plain_name(one["name"]), Counter())[place] += 1
    return found


def _symbol(change: str, name: str, was: _Place | None, now: _Place | None) -> dict[str, Any]:
    kind, section, _ = now or was or ("", "", 0)
    return {
        "change": change,
        "name": name,
        "kind": kind,
        "section": [was[1] if was else None, now[1] if now else None] if change == "moved" else section,
        "size": [was[2] if was else None, now[2] if now else None],
    }


def _follow_between_modules(modules: Iterable[dict[str, Any]]) -> None:
    """A symbol that went from one module and came in another one: where from, where to."""
    changes = [(module["name"], one) for module in modules for one in module.get("symbols", ())]
    went = {(one["name"], one["kind"]): (name, one) for name, one in changes if one["change"] == "went"}
    for name, one in changes:
        other = went.get((one["name"], one["kind"])) if one["change"] == "came" else None
        if other is not None and "." not in one["name"]:
            one["from"], other[1]["to"] = other[0], name


def _named(old: Iterable[Data], new: Iterable[Data], keys: Sequence[str]) -> list[dict[str, Any]]:
    """What has a name and some properties."""
    before = {one["name"]: {key: one[key] for key in keys} for one in old if one["name"]}
    after = {one["name"]: {key: one[key] for key in keys} for one in new if one["name"]}
    found = []
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            change = "went" if name not in after else "came" if name not in before else "changed"
            found.append({"change": change, "name": name, "before": before.get(name), "after": after.get(name)})
    return found


def _lists(old: Iterable[str], new: Iterable[str]) -> list[dict[str, Any]]:
    before, after = set(old), set(new)
    return [{"change": "came" if one in after else "went", "name": one} for one in sorted(before ^ after)]


def _findings(old: Iterable[Data], new: Iterable[Data]) -> list[dict[str, Any]]:
    """Findings that came or went, and those of which status or answer changed."""
    before, after = ({one["id"]: one for one in side} for side in (old, new))
    found = []
    for one in [*after, *(gone for gone in before if gone not in after)]:
        was, now = before.get(one), after.get(one)
        states = [side and (side["answer"] or side["status"]) for side in (was, now)]
        if states[0] != states[1]:
            shown = now or was
            assert shown is not None
            change = "went" if now is None else "came" if was is None else "changed"
            found.append(
                {
                    "change": change,
                    "id": one,
                    "before": states[0],
                    "after": states[1],
                    "status": shown["status"],
                    "message": shown["message"],
                    "witness": shown["witness"],
                }
            )
    return found
