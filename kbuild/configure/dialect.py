"""kconfiglib 14.1.0, taught what kernels up to 7.2 have added since its release, and to remember lines.

Only the worker imports this: kconfiglib reads environment and working folder process-wide.
Where the kernel and kconfiglib differ, the kernel's scripts/kconfig/ is right.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import kconfiglib
from kconfiglib import AND, EQUAL, NOT, OR

from kbuild.configure.fragment import Place


@dataclasses.dataclass(frozen=True)
class Condition:
    """A line that something has to meet."""

    word: str
    """`depends on`, `if`, `visible if` or `prompt if`."""
    expression: Any
    place: Place


def unset_numbers_read_zero() -> None:
    """Make an int or hex without a value read `0` or `0x0`, as from 6.12 on (symbol.c, sym_calc_value()), not empty.

    For this whole process: kconfiglib compares the class of its symbols in many places, so that a subclass will not do.
    """
    empty = kconfiglib.Symbol.str_value.fget
    zero = {kconfiglib.INT: "0", kconfiglib.HEX: "0x0"}
    kconfiglib.Symbol.str_value = property(lambda symbol: empty(symbol) or zero.get(symbol.orig_type, ""))


class KernelKconfig(kconfiglib.Kconfig):  # type: ignore[misc]  # kconfiglib has no types
    """A kernel's Kconfig tree, as the environment (`srctree`, `SRCARCH`, …) and the working folder say.

    `machine` tells whether the compiler and the like can be asked. Where not, a shell call that gives nothing reads
    as `n`, and `$(error-if …)` does not end the reading. Raises kconfiglib.KconfigError, `file:line: …`.
    """

    def __init__(self, machine: bool = True) -> None:
        self._machine = machine
        self._node: Any = None
        self._if: Condition | None = None
        self.enclosing: dict[Any, Any] = {}
        """Of each menu node the one around it, `if` blocks included, which kconfiglib removes in the end."""
        self.conditions: dict[Any, list[Condition]] = {}
        """Of each menu node its own `depends on`, `if` and `visible if` lines, and its prompt's `if`."""
        self.selections: dict[tuple[Any, Any], Place] = {}
        """Of each (selecting, selected) pair of symbols the `select` or `imply` line."""
        self.asking: set[Any] = set()
        """Symbols whose definition asks the machine by a shell call."""
        super().__init__(warn_to_stderr=False)
        self.warn_assign_undef = True

    def _tokenize(self, s: str) -> Any:
        # 5.13 turned `option modules` into `modules`. `transitional` (6.18) marks an old name that is only read from
        # old configurations.
        match s.strip():
            case "modules":
                s = "option modules"
            case "transitional":
                s = "\n"
        return super()._tokenize(s)

    def _parse_props(self, node: Any) -> None:
        self._node = node
        self.enclosing[node] = node.parent
        super()._parse_props(node)
        self._node = None

    def _parse_block(self, end_token: Any, parent: Any, prev: Any) -> Any:
        if end_token is kconfiglib._T_ENDIF and self._if is not None:
            self.conditions[parent] = [self._if]
            self.enclosing[parent] = parent.parent
        return super()._parse_block(end_token, parent, prev)

    def _expect_expr_and_eol(self) -> Any:
        keyword = self._tokens[0]
        if keyword is kconfiglib._T_DEPENDS:
            expr = self._parse_expr(True)
            # `depends on X if Y` (7.0) is X || Y = n (menu.c, menu_add_dep()): with Y=m, X has to hold as well.
            if self._check_token(kconfiglib._T_IF):
                expr = self._make_or(expr, self._is_n(self._parse_expr(True)))
            if self._tokens[self._tokens_i] is not None:
                self._trailing_tokens_error()
        else:
            expr = super()._expect_expr_and_eol()
        place = Place(self.filename, self.linenr)
        if keyword is kconfiglib._T_IF:
            self._if = Condition("if", expr, place)
        elif self._node is not None:
            word = "depends on" if keyword is kconfiglib._T_DEPENDS else "visible if"
            self.conditions.setdefault(self._node, []).append(Condition(word, expr, place))
        return expr

    def _parse_prompt(self, node: Any) -> None:
        super()._parse_prompt(node)
        if node.prompt[1] is not self.y:
            condition = Condition("prompt if", node.prompt[1], Place(self.filename, self.linenr))
            self.conditions.setdefault(node, []).append(condition)

    def _is_n(self, expr: Any) -> Any:
        """`expr = n`, as the kernel's expr.c, expr_trans_compare() writes it."""
        if not isinstance(expr, tuple):
            return (EQUAL, expr, self.n)
        match expr[0]:
            case kconfiglib.AND:
                return (OR, self._is_n(expr[1]), self._is_n(expr[2]))
            case kconfiglib.OR:
                return (AND, self._is_n(expr[1]), self._is_n(expr[2]))
            case kconfiglib.NOT:
                return (NOT, self._is_n(expr[1]))
            case _:
                return (NOT, expr)

    def _expect_nonconst_sym(self) -> Any:
        symbol = super()._expect_nonconst_sym()
        if self._node is not None:
            self.selections[self._node.item, symbol] = Place(self.filename, self.linenr)
        return symbol

    def _fn_val(self, args: list[str]) -> str:
        if args[0] == "shell" and self._node is not None:
            self.asking.add(self._node.item)
        if args[0] == "error-if" and not self._machine:
            return ""
        value: str = super()._fn_val(args)
        return "n" if args[0] == "shell" and not value and not self._machine else value
