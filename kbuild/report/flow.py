"""The init flow as a person reads it: one tree for each entry, folded to what matters. Takes the key `flow`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kbuild.report.calls import called
from kbuild.report.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

Data = Mapping[str, Any]
WIDE = 4096
"""Of a file or pipe: no line is broken there."""
MAX_UNRESOLVED = 20


def render_summary(entries: Sequence[Data], console: Console) -> None:
    """One line for each entry, and what could not be resolved by name."""
    for entry in entries:
        plain(console, _summary(entry))
        for one in entry["unresolved"][:MAX_UNRESOLVED]:
            plain(console, f"  {_unresolved(one)}", style="yellow")
        if (more := len(entry["unresolved"]) - MAX_UNRESOLVED) > 0:
            plain(console, f"  … {more} more with --json", style="dim")
        for place in entry["cut"]:
            plain(console, f"  given up, for it came to no end: {place}", style="yellow")


def render_flow(entries: Sequence[Data], console: Console, *, full: bool, by_rules: bool) -> None:
    """Print the trees: with `full` all calls, else those that rules mention, or that lead to another module."""
    from rich.tree import Tree

    from kbuild.report.consoles import console_on

    if not console.is_terminal:
        console = console_on(console.file, width=WIDE)
    for entry in entries:
        root = Tree(_entry(entry))
        _add(root, entry["calls"], entry["module"], full=full, by_rules=by_rules)
        console.print(root)


def _summary(entry: Data) -> str:
    counts = entry["counts"]
    parts = [_plural(counts["functions"], "function"), _plural(counts["calls"], "call")]
    parts.append(f"{counts['unresolved']} unresolved")
    if counts["candidates"]:
        parts.append(f"{_plural(counts['candidates'], 'candidate')} of static calls")
    return f"{entry['function']} ({entry['module']}, {entry['entry']}): {', '.join(parts)}"


def _unresolved(one: Data) -> str:
    through = f", through {one['through']}" if one["through"] else ""
    source = f", {one['source']}" if one["source"] else ""
    return f"unresolved: {one['why']}{through}: at {one['place']}{source}"


def _add(tree: Tree, calls: Sequence[Data], module: str, *, full: bool, by_rules: bool) -> None:
    folded = 0
    for node in calls:
        if not full and not _matters(node, module, by_rules=by_rules):
            folded += 1
            continue
        _add_folded(tree, folded)
        folded = 0
        inner = node["module"] if node["module"] not in (None, "kernel") else module
        _add(tree.add(_label(node)), node["calls"], inner, full=full, by_rules=by_rules)
    _add_folded(tree, folded)


def _add_folded(tree: Tree, count: int) -> None:
    if count:
        tree.add(f"[dim]… {_plural(count, 'more call')}[/]")


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _matters(node: Data, module: str, *, by_rules: bool) -> bool:
    """Whether it, or something below it, is what the tree is folded to."""
    if by_rules:
        return bool(node["events"]) or any(_matters(one, module, by_rules=True) for one in node["calls"])
    inner = node["module"] if node["module"] not in (None, "kernel") else module
    leads_on = node["unresolved"] is not None or inner != module or (node["how"] == "pointer" and inner is not None)
    return leads_on or _has_string(node) or any(_matters(one, inner, by_rules=False) for one in node["calls"])


def _has_string(node: Data) -> bool:
    return any("string" in one for argument in node["arguments"] for one in argument)


def _entry(entry: Data) -> Text:
    from rich.text import Text

    where = ", ".join(part for part in (entry["module"], entry["section"], entry["source"]) if part)
    return Text.assemble((f"{entry['function']}()", "bold"), ("  " + where, "dim"), *_told(entry["events"]))


def _label(node: Data) -> Text:
    from rich.text import Text

    # Of one that leads nobody knows where, where it is called is all that there is.
    where = " ".join(part for part in (node["module"], node["section"]) if part) or f"at {node['place']}"
    source = f", {node['source']}" if node["source"] else ""
    style = "yellow" if node["unresolved"] is not None else ""
    return Text.assemble((called(node), style), (f"  {where}{source}", "dim"), *_marks(node), *_told(node["events"]))


def _marks(node: Data) -> Iterator[tuple[str, str]]:
    """How the call comes about, where it is no plain one."""
    words = [node["how"]] if node["how"] != "call" else []
    words += ["candidate"] if node["candidate"] else []
    words += ["tail"] if node["tail"] else []
    if words:
        yield f" [{', '.join(words)}]", "cyan"


def _told(events: Sequence[Data]) -> Iterator[tuple[str, str]]:
    for event in events:
        what = "" if event["what"].endswith("()") or event["what"].endswith('"') else f": {event['what']}"
        yield f"  ← {event['event']} of {event['rule']}{what}", "green"
