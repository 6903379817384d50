"""Why a symbol has its value: read off kconfiglib's expressions, in the kernel's words, with lines.

Runs inside the worker.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kconfiglib
from kconfiglib import AND, BOOL, HEX, INT, NOT, OR, STR_TO_TRI, STRING, TRI_TO_STR, TRISTATE, expr_value

from kbuild.configure.answer import Default, Definition, Explanation, Operand, Part, Problem, Range, Selection
from kbuild.configure.dialect import KernelKconfig
from kbuild.configure.fragment import Option, Place

MAX_NAMED = 5
"""Names in a sentence; more help nobody."""
MAX_SAID = 8
"""Unmet conditions in a sentence: as far a chain of blocked dependencies is followed."""


def place_of(item: Any) -> Place | None:
    """Where a symbol or choice is (first) defined."""
    return Place(item.nodes[0].filename, item.nodes[0].linenr) if item.nodes else None


def text(expression: Any) -> str:
    """An expression as a Kconfig file writes it."""

    def name(item: Any) -> str:
        if item.__class__ is kconfiglib.Choice:
            return f"<choice at {place_of(item)}>"
        return str(kconfiglib.standard_sc_expr_str(item))

    return str(kconfiglib.expr_str(expression, name))


def value_of(expression: Any) -> str:
    """`n`, `m` or `y`."""
    return str(TRI_TO_STR[expr_value(expression)])


def _names(selections: tuple[Selection, ...]) -> str:
    shown = [f"{s.symbol} ({s.place})" if s.place else s.symbol for s in selections[:MAX_NAMED]]
    more = len(selections) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _leaves(expression: Any, positive: bool = True) -> Iterator[tuple[Any, bool]]:
    """The symbols in an expression, each with whether it has to be set for the expression to hold."""
    if expression.__class__ is not tuple:
        if expression.__class__ is kconfiglib.Choice or not expression.is_constant:
            yield expression, positive
    elif expression[0] is NOT:
        yield from _leaves(expression[1], not positive)
    else:
        for operand in expression[1:]:
            yield from _leaves(operand, positive and expression[0] in (AND, OR))


class Reasons:
    """Answers about the symbols of one Kconfig tree, at its present values."""

    def __init__(self, kconf: KernelKconfig, source: Path) -> None:
        self._kconf = kconf
        self._source = source

    # What a symbol depends on

    def _part(self, word: str, expression: Any, place: Place) -> Part:
        operands: dict[str, Operand] = {}
        for item, _ in _leaves(expression):
            name = text(item)
            operands.setdefault(name, Operand(name, item.str_value, place_of(item)))
        return Part(word, text(expression), value_of(expression), place, tuple(operands.values()))

    def _expressions(self, node: Any) -> Iterator[tuple[str, Any, Place]]:
        """All that a definition has to meet, outermost last: its own lines and those of the blocks around it."""
        seen: set[str] = set()
        around = node
        while around is not None:
            for condition in self._kconf.conditions.get(around, ()):
                if around is not node and condition.word == "prompt if" and around.item.__class__ is kconfiglib.Symbol:
                    continue
                for part in kconfiglib.split_expr(condition.expression, AND):
                    if (key := text(part)) not in seen:
                        seen.add(key)
                        yield condition.word, part, condition.place
            around = self._kconf.enclosing.get(around)

    def _unmet(self, item: Any, wanted: int) -> list[tuple[str, Any, Place]]:
        """What keeps a symbol's prompt from being visible to `wanted`; the definition that lacks least."""
        if item.orig_type is not TRISTATE:
            wanted = 1  # m is promoted to y
        candidates = [
            [entry for entry in self._expressions(node) if expr_value(entry[1]) < wanted]
            for node in item.nodes
            if node.prompt
        ]
        return min(candidates, key=len, default=[])

    def _blocked(self, item: Any, wanted: int) -> tuple[str, tuple[Part, ...]]:
        """The unmet parts in words and as data."""
        unmet = self._unmet(item, wanted)
        said: set[str] = set()
        words = [w for entry in unmet if (w := self._unmet_text(entry, item, wanted, said))]
        more = f"; and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else ""
        line = "; ".join(words[:MAX_NAMED]) + more
        return line or "its prompt is not visible", tuple(self._part(*entry) for entry in unmet)

    def _unmet_text(self, entry: tuple[str, Any, Place], item: Any, wanted: int, said: set[str]) -> str:
        """One unmet part, and if that is one symbol, why that is so in its turn; nothing that was said before."""
        word, expression, place = entry
        if (key := f"{text(expression)} {place}") in said:
            return ""
        said.add(key)
        effect = "limits it to m" if expr_value(expression) else "does not hold"
        described = [self._operand_text(leaf) for leaf, _ in _leaves(expression)][:MAX_NAMED]
        line = f"'{word} {text(expression)}' ({place}) {effect}" + (f": {', '.join(described)}" if described else "")
        if expression.__class__ is kconfiglib.Symbol and expression is not item and len(said) < MAX_SAID:
            line += self._because(expression, wanted, said)
        return line

    def _operand_text(self, item: Any) -> str:
        if item.__class__ is kconfiglib.Choice:
            return f"{text(item)} is {item.str_value}"
        if not item.nodes:
            return f"{item.name} is defined nowhere"
        return f"{item.name} is {item.str_value or 'empty'} ({place_of(item)})"

    def _because(self, symbol: Any, wanted: int, said: set[str]) -> str:
        """Why a symbol that something needs is not set."""
        if not symbol.nodes or symbol.name in said:
            return ""
        said.add(symbol.name)
        if not any(node.prompt for node in symbol.nodes):
            return f", which {self._promptless(symbol, said)}"
        if symbol.visibility >= (wanted if symbol.orig_type is TRISTATE else 1):
            return f", {self._choice_text(symbol)}" if symbol.choice else ", which can be set"
        for entry in self._unmet(symbol, wanted):
            if words := self._unmet_text(entry, symbol, wanted, said):
                return f", for {words}"
        return ""

    def _promptless(self, symbol: Any, said: set[str] | None = None) -> str:
        words = "has no prompt, so nobody can set it"
        selected, defaults = self.selections(symbol.rev_dep, symbol), self.defaults(symbol)
        if selected:
            words += f"; it is selected by {_names(selected)}"
        if active := next((d for d in defaults if d.active), None):
            words += f"; its default is {self._default_text(active)}"
        elif defaults:
            lacking = [e for node in symbol.nodes for e in self._expressions(node) if not expr_value(e[1])]
            words += f"; its default {self._default_text(defaults[0])} does not count"
            if lacking and (why := self._unmet_text(lacking[0], symbol, 1, said if said is not None else set())):
                words += f", for {why}"
        return words

    def _default_text(self, default: Default) -> str:
        return f"'{default.value}'" + (f" if {default.condition}" if default.condition != "y" else "")

    def _choice_text(self, symbol: Any) -> str:
        choice = symbol.choice
        taken = choice.selection.name if choice.selection else "none"
        return f"one of the choice at {place_of(choice)}, where {taken} is taken"

    # Selects, defaults, ranges

    def selections(self, expression: Any, symbol: Any) -> tuple[Selection, ...]:
        """The lines behind `rev_dep` or `weak_rev_dep`."""
        result: dict[tuple[str, str], Selection] = {}
        for term in kconfiglib.split_expr(expression, OR):
            if term is self._kconf.n:
                continue
            selecting, *conditions = kconfiglib.split_expr(term, AND)
            name = text(selecting)
            condition = " && ".join(text(c) for c in conditions) or "y"
            place = self._kconf.selections.get((selecting, symbol)) or place_of(selecting)
            result.setdefault((name, condition), Selection(name, condition, value_of(term), place))
        return tuple(result.values())

    def defaults(self, symbol: Any) -> tuple[Default, ...]:
        """In their order."""
        # kconfiglib's `defaults` have the dependencies in their conditions, `orig_defaults` are as written.
        pairs = zip(symbol.orig_defaults, symbol.defaults, strict=True)
        return tuple(
            Default(text(value), text(condition), expr_value(full[1]) > 0) for (value, condition), full in pairs
        )

    def ranges(self, symbol: Any) -> tuple[Range, ...]:
        """In their order, bounds as values."""
        return tuple(Range(low.str_value, high.str_value, expr_value(c) > 0) for low, high, c in symbol.ranges)

    # Names

    def unknown(self, name: str) -> str:
        """What to say of a name that is no symbol."""
        names = [symbol.name for symbol in self._kconf.unique_defined_syms]
        folded = name.upper().replace("-", "_")
        same = [n for n in names if n.upper() == folded and n != name]
        near = list(dict.fromkeys([*same, *difflib.get_close_matches(folded, names, n=MAX_NAMED, cutoff=0.75)]))
        line = f"CONFIG_{name} is no symbol of this kernel"
        if used := self._kconf.syms.get(name):
            line += " (its Kconfig files name it, but nothing defines it)" if used._dependents else ""
        if place := self._elsewhere(name):
            line += f"; it is one of another architecture ({place})"
        return line + (f"; nearest: {', '.join(near)}" if near else "; no name is near it")

    def _elsewhere(self, name: str) -> Place | None:
        """Where another architecture defines it."""
        if not re.fullmatch(r"\w+", name):
            return None
        pattern = re.compile(rf"^(?:menu)?config\s+{name}\s*$", re.M)
        for folder, _, files in os.walk(self._source / "arch"):
            for file in files:
                if file.startswith("Kconfig"):
                    path = Path(folder, file)
                    content = path.read_text("utf-8", "replace")
                    if match := pattern.search(content):
                        return Place(str(path.relative_to(self._source)), content.count("\n", 0, match.start()) + 1)
        return None

    # Requests

    def problem(self, option: Option) -> Problem:
        """Why a request did not take effect, at the present values, which are the result."""
        symbol = self._kconf.syms.get(option.name)
        if symbol is None or not symbol.nodes:
            return Problem(option, "unknown", self.unknown(option.name))
        head = f"CONFIG_{option.name}={option.value} did not take effect"
        if option.value == "n":
            head = f"CONFIG_{option.name} was to be off"
        if mismatch := self._type_mismatch(symbol, option.value):
            return Problem(option, "type", f"{head}: {mismatch} ({place_of(symbol)})")
        head += f", it is {symbol.str_value or 'empty'} ({place_of(symbol)})"
        if symbol.orig_type in (BOOL, TRISTATE):
            wanted = STR_TO_TRI[option.value]
            raised = wanted > symbol.tri_value
            return self._too_low(symbol, wanted, head, option) if raised else self._too_high(symbol, head, option)
        if not any(node.prompt for node in symbol.nodes):
            return Problem(option, "promptless", f"{head}: it {self._promptless(symbol)}")
        if not symbol.visibility:
            words, parts = self._blocked(symbol, 1)
            return Problem(option, "blocked", f"{head}: {words}", parts)
        if active := next((r for r in self.ranges(symbol) if r.active), None):
            return Problem(option, "range", f"{head}: its range is {active.low} to {active.high}")
        return Problem(option, "other", f"{head}: conf took another value")

    def _type_mismatch(self, symbol: Any, value: str) -> str:
        kind = symbol.orig_type
        forms: dict[Any, tuple[str, str]] = {
            BOOL: (r"[yn]", "a bool takes y or n"),
            TRISTATE: (r"[ymn]", "a tristate takes y, m or n"),
            INT: (r"-?\d+", "an int takes a decimal number"),
            HEX: (r"(0[xX])?[0-9a-fA-F]+", "a hex takes a number such as 0x1000"),
            STRING: (r'".*"', 'a string takes "text" in quotes'),
        }
        form, words = forms.get(kind, (r".*", ""))
        return "" if re.fullmatch(form, value) or (kind is STRING and value == "n") else words

    def _too_low(self, symbol: Any, wanted: int, head: str, option: Option) -> Problem:
        if not any(node.prompt for node in symbol.nodes):
            return Problem(option, "promptless", f"{head}: it {self._promptless(symbol)}")
        if symbol.choice and symbol.choice.visibility and symbol.choice.selection not in (None, symbol):
            words, parts = self._blocked(symbol, wanted)
            if not parts:
                return Problem(option, "choice", f"{head}: it is {self._choice_text(symbol)}")
            return Problem(option, "blocked", f"{head}: {words}", parts)
        if symbol.visibility < wanted:
            words, parts = self._blocked(symbol, wanted)
            return Problem(option, "limited" if symbol.visibility else "blocked", f"{head}: {words}", parts)
        return Problem(option, "other", f"{head}: conf took another value, and no dependency forbids the requested one")

    def _too_high(self, symbol: Any, head: str, option: Option) -> Problem:
        wanted = STR_TO_TRI[option.value]
        if active := self._active(symbol.rev_dep, symbol, wanted):
            return Problem(option, "forced", f"{head}: selected by {_names(active)}")
        if symbol.choice and symbol.choice.selection is symbol:
            return Problem(option, "choice", f"{head}: the choice at {place_of(symbol.choice)} takes it")
        if not any(node.prompt for node in symbol.nodes):
            return Problem(option, "promptless", f"{head}: it {self._promptless(symbol)}")
        if wanted and symbol.type is not TRISTATE:
            return Problem(option, "forced", f"{head}: without MODULES there is no m")
        if active := self._active(symbol.weak_rev_dep, symbol, wanted):
            return Problem(option, "forced", f"{head}: implied by {_names(active)}")
        if symbol.visibility <= wanted:
            words, parts = self._blocked(symbol, 2)
            default = next((d for d in self.defaults(symbol) if d.active), None)
            words += f"; so its default {self._default_text(default)} counts" if default else ""
            return Problem(option, "blocked", f"{head}: it cannot be set, for {words}", parts)
        return Problem(option, "other", f"{head}: conf took another value")

    def _active(self, expression: Any, symbol: Any, above: int) -> tuple[Selection, ...]:
        return tuple(s for s in self.selections(expression, symbol) if STR_TO_TRI[s.value] > above)

    # Everything about one symbol

    def explain(self, name: str, requested: Option | None, note: str) -> Explanation | None:
        """All about a symbol; none where there is no such symbol."""
        symbol = self._kconf.syms.get(name)
        if symbol is None or not symbol.nodes:
            return None
        asking = sorted({leaf.name for leaf in self._all_leaves(symbol) if leaf in self._kconf.asking})
        choice = symbol.choice
        return Explanation(
            symbol=name,
            type=kconfiglib.TYPE_TO_STR[symbol.orig_type],
            value=symbol.str_value,
            answer=self._answer(symbol, requested),
            visible=TRI_TO_STR[symbol.visibility],
            definitions=tuple(
                Definition(
                    Place(node.filename, node.linenr),
                    node.prompt[0] if node.prompt else None,
                    tuple(self._part(*entry) for entry in self._expressions(node)),
                )
                for node in symbol.nodes
            ),
            selected_by=self.selections(symbol.rev_dep, symbol),
            implied_by=self.selections(symbol.weak_rev_dep, symbol),
            defaults=self.defaults(symbol),
            ranges=self.ranges(symbol),
            choice=tuple(member.name for member in choice.syms) if choice else (),
            choice_selection=choice.selection.name if choice and choice.selection else None,
            help=next((node.help for node in symbol.nodes if node.help), ""),
            requested=requested,
            note=note and note + (f"; asked of them here: {', '.join(asking)}" if asking else ""),
        )

    def _all_leaves(self, symbol: Any) -> set[Any]:
        expressions = [symbol.direct_dep, symbol.rev_dep, *(e for default in symbol.defaults for e in default)]
        found = {leaf for expression in expressions for leaf, _ in _leaves(expression)} | {symbol}
        return {leaf for leaf in found if leaf.__class__ is kconfiglib.Symbol}

    def _answer(self, symbol: Any, requested: Option | None) -> str:
        value = f"{symbol.name} is {symbol.str_value or 'empty'}"
        logical = symbol.orig_type in (BOOL, TRISTATE)
        if requested is not None:
            got = symbol.str_value if symbol.orig_type is not STRING else f'"{kconfiglib.escape(symbol.str_value)}"'
            if got == requested.value:
                return f"{value}, as {requested.place} asks"
            return self.problem(requested).message
        if active := self._active(symbol.rev_dep, symbol, 0):
            return f"{value}: selected by {_names(active)}"
        default = next((d for d in self.defaults(symbol) if d.active), None)
        prompt = any(node.prompt for node in symbol.nodes)
        if logical and symbol.choice:
            if symbol.tri_value:
                return f"{value}: the choice at {place_of(symbol.choice)} takes it"
            return f"{value}: it is {self._choice_text(symbol)}"
        if not prompt:
            return f"{value}: it {self._promptless(symbol)}"
        if not symbol.visibility:
            words, _ = self._blocked(symbol, 1)
            return f"{value}: {words}"
        if logical and not symbol.tri_value:
            most = "m or y" if symbol.type is TRISTATE and symbol.visibility == 2 else TRI_TO_STR[symbol.visibility]
            return f"{value}: its dependencies hold and nothing asks for it; it can be set to {most}"
        if active := self._active(symbol.weak_rev_dep, symbol, 0):
            return f"{value}: implied by {_names(active)}"
        if default:
            return f"{value}: its default is {self._default_text(default)}, and the configuration may say so too"
        return f"{value}: the configuration says so"
