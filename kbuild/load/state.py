"""The host's state as the agent tells it: what a load can leave behind, and what two looks have different. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from kbuild.load.protocol import Items, fnv1a

_TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"
"""Documentation/admin-guide/tainted-kernels.rst, from bit 0."""
_TAINT_OF_MODULES = frozenset("PFCOEKXTN")
"""What a module is, not what it did: such a bit stays until the next boot and is no trace of a defect."""
_MODULE_FIELDS = ("size", "refs", "holders", "state")
_COUNTED = ("thread/", "vmalloc/")
"""Kinds whose facts are numbers: one more of them is left, one less is gone."""


class State(msgspec.Struct, frozen=True):
    """What a load can leave behind, as one `state` told it.

    `facts` maps an id that is the same in every run to its value, mostly empty: `slab/kvm_vcpu`,
    `debugfs/kvm`, `dev/kvm`, `modules/kvm`, `modules/kvm/refs` = `1`, `sysfs/kvm` = `live`, `taint/W`,
    `vmalloc/load_module/8192` = `2`. docs/agent.md has the kinds.
    """

    facts: Mapping[str, str]
    absent: frozenset[str]
    """What this kernel does not show, such as `slab`: there, nothing was looked at."""
    hash: str
    """Computed here, of what came. If the agent's own differs, items were lost on the way."""

    def difference(self, after: State) -> list[str]:
        """What a later state has anew (its id), no longer has (`gone/ID`) or has otherwise (`changed/ID`).

        What lies below something that is new or gone itself is not named.
        """
        new = _outermost(after.facts.keys() - self.facts.keys())
        gone = _outermost(self.facts.keys() - after.facts.keys())
        both = self.facts.keys() & after.facts.keys()
        changed = (
            _changed(key, self.facts[key], after.facts[key]) for key in both if self.facts[key] != after.facts[key]
        )
        unseen = (f"absent/{what}" for what in after.absent ^ self.absent)
        return sorted([*new, *(f"gone/{key}" for key in gone), *changed, *unseen])


def told_difference(before: State, after: State) -> list[str]:
    """What a later state has anew, no longer has, or has otherwise, with its values: what a person or script reads.

    `+ slab/kvm_vcpu/size = 9408`, `- dev/kvm`, `* modules/kvm/refs = 0 -> 1`. What was below something that is gone is
    not named.
    """
    new = [f"+ {_with_value(key, after.facts[key])}" for key in after.facts.keys() - before.facts.keys()]
    gone = [f"- {key}" for key in _outermost(before.facts.keys() - after.facts.keys())]
    both = [(key, before.facts[key], value) for key, value in after.facts.items() if key in before.facts]
    changed = [f"* {key} = {was} -> {now}" for key, was, now in both if was != now]
    return sorted([*new, *gone, *changed], key=lambda line: (line[2:], line[0]))


def _with_value(key: str, value: str) -> str:
    return f"{key} = {value}" if value else key


def _changed(key: str, before: str, after: str) -> str:
    if key.startswith(_COUNTED) and before.isdigit() and after.isdigit():
        return key if len(before) < len(after) or (len(before) == len(after) and before < after) else f"gone/{key}"
    return f"changed/{key}"


def parse_state(parts: Iterable[Items]) -> State:
    """The state that the `items` of one command make up, in any order. Odd items are kept as they are."""
    items = [(part.what, item) for part in parts for item in part.items]
    facts: dict[str, str] = {}
    for what, item in items:
        if what != "absent":
            facts.update(_facts(what, item))
    threads = Counter(item for what, item in items if what == "thread")
    facts.update({f"thread/{name}": str(count) for name, count in threads.items()})
    return State(
        facts=dict(sorted(facts.items())),
        absent=frozenset(item for what, item in items if what == "absent"),
        hash=_hash(f"{what}/{item}" for what, item in items),
    )


def _facts(what: str, item: str) -> Iterator[tuple[str, str]]:
    match what:
        case "modules":
            name, *fields = item.split(" ")
            yield f"modules/{name}", ""
            for field, value in zip(_MODULE_FIELDS, fields, strict=False):
                yield f"modules/{name}/{field}", value
        case "sysfs":
            name, _, state = item.partition(" ")
            yield f"sysfs/{name}", state
        case "debugfs":
            # A virtual machine's folder is named PID-FD: another one in every run.
            yield "debugfs/" + re.sub(r"^kvm/[0-9]+-[0-9]+$", "kvm/PID-FD", item), ""
        case "parameter":
            name, _, value = item.partition(" ")
            module, _, parameter = name.partition(".")
            yield f"modules/{module}/parameters/{parameter}", value
        case "size":
            name, _, size = item.rpartition(" ")
            yield f"slab/{name}/size", size
        case "kallsyms":
            name, _, count = item.rpartition(" ")
            yield f"kallsyms/{name}", count
        case "vmalloc":
            area, _, count = item.rpartition(" ")
            yield f"vmalloc/{area.replace(' ', '/')}", count
        case "dev":
            yield item.lstrip("/"), ""
        case "taint" if re.fullmatch(r"[0-9]{1,18}", item):
            bits = (bit for bit in range(int(item).bit_length()) if int(item) >> bit & 1)
            letters = (_TAINT_LETTERS[bit] if bit < len(_TAINT_LETTERS) else f"bit-{bit}" for bit in bits)
            yield from ((f"taint/{letter}", "") for letter in letters if letter not in _TAINT_OF_MODULES)
        case _:
            yield f"{what}/{item}", ""


def _outermost(keys: set[str]) -> Iterator[str]:
    for key in keys:
        parts = key.split("/")
        if not any("/".join(parts[:n]) in keys for n in range(1, len(parts))):
            yield key


def _hash(items: Iterable[str]) -> str:
    """FNV-1a, 64 bits, over the sorted items, each with a newline (`state.c`, hash())."""
    data = b"".join(item + b"\n" for item in sorted(item.encode("latin-1", "replace") for item in items))
    return f"{fnv1a(data, 64):016x}"
