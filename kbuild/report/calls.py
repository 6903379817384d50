"""A call in words: takes a node of the key `flow` of `inspect --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_TEXT = 60
"""Characters of a string that are shown."""
MAX_SMALL = 4095
"""Up to here numbers are sizes and counts, and their negatives errnos; above, addresses and bits."""


def called(node: Mapping[str, Any]) -> str:
    """`kmem_cache_create("pte_list_desc", 128, 0, 0, 0)`; of a call that was not resolved, what is known of it."""
    if node["unresolved"] is not None:
        through = f" through {node['through']}" if node["through"] else ""
        return f"? {node['unresolved']}{through}"
    return f"{node['function']}({', '.join(map(_argument, node['arguments']))})"


def _argument(constants: Sequence[Mapping[str, Any]]) -> str:
    return " or ".join(map(_constant, constants)) or "?"


def _constant(one: Mapping[str, Any]) -> str:
    if "string" in one:
        text = one["string"] if len(one["string"]) <= MAX_TEXT else f"{one['string'][:MAX_TEXT]}…"
        return '"' + "".join(map(_character, text)) + '"'
    if "symbol" in one:
        return f"&{one['symbol']}" + (f"+{one['offset']:#x}" if one["offset"] else "")
    return "&local" if one.get("stack") else _number(one["number"])


def _character(char: str) -> str:
    known = {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
    return known.get(char) or (char if char.isprintable() else f"\\x{ord(char):02x}")


def _number(number: int) -> str:
    if number <= MAX_SMALL:
        return str(number)
    for bits in (32, 64):
        if 0 < (1 << bits) - number <= MAX_SMALL:
            return str(number - (1 << bits))
    return f"{number:#x}"
