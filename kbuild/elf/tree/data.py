"""Trees as JSON: the key `flow` of `inspect --json` (docs/inspect.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kbuild.elf.tree.model import Node, Tree


def flow_json(trees: Iterable[Tree]) -> list[dict[str, Any]]:
    """All trees; every key is in each."""
    return [
        {
            "module": tree.module,
            "entry": tree.entry,
            **_function(tree.root),
            "counts": tree.counts,
            "unresolved": [{**_place(node), "why": node.why, "through": node.through} for node in tree.unresolved],
            "cut": [str(place) for place in tree.cut],
            "events": _events(tree.root),
            "calls": [_call(node) for node in tree.root.calls],
        }
        for tree in trees
    ]


def _function(node: Node) -> dict[str, Any]:
    return {"function": node.name, "symbol": node.symbol, "section": node.section, **_place(node)}


def _place(node: Node) -> dict[str, Any]:
    at = node.place
    return {
        "place": str(at.name) if at is not None else None,
        "source": str(at.source) if at is not None and at.source is not None else None,
    }


def _events(node: Node) -> list[dict[str, str]]:
    return [{"rule": rule, "event": which, "what": what} for rule, which, what in node.events]


def _call(node: Node) -> dict[str, Any]:
    return {
        "module": "kernel" if node.of_kernel else node.module,
        **_function(node),
        "arguments": [[one.data() for one in argument] for argument in node.arguments],
        "how": node.how,
        "tail": node.is_tail,
        "candidate": node.is_candidate,
        "unresolved": node.why,
        "through": node.through,
        "events": _events(node),
        "calls": [_call(one) for one in node.calls],
    }
