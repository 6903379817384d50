"""What is asked of the worker and what it answers: all of it data, for it crosses a process border."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from kbuild.configure.fragment import Option, Place


class Operand(msgspec.Struct, frozen=True, omit_defaults=True):
    """A symbol inside an expression."""

    name: str
    value: str
    place: Place | None = None
    """Where it is defined; none where nothing defines it."""


class Part(msgspec.Struct, frozen=True):
    """One of the conditions that all have to hold, none of them a conjunction."""

    word: str
    """`depends on`, `if`, `visible if`, `prompt if` (only the prompt needs the last two)."""
    expression: str
    value: str
    """`y`, `m` or `n`."""
    place: Place
    """The line that demands it."""
    operands: tuple[Operand, ...]


class Definition(msgspec.Struct, frozen=True):
    """One place where a symbol is defined, with what that definition depends on."""

    place: Place
    prompt: str | None
    depends: tuple[Part, ...]


class Selection(msgspec.Struct, frozen=True):
    """A `select` or `imply` line that concerns a symbol."""

    symbol: str
    """The one that selects."""
    condition: str
    value: str
    """What it gives: `n` where it is not in force."""
    place: Place | None


class Default(msgspec.Struct, frozen=True):
    """A `default` line; the first active one counts."""

    value: str
    condition: str
    active: bool


class Range(msgspec.Struct, frozen=True):
    """A `range` line; the first active one counts."""

    low: str
    high: str
    active: bool


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All about one symbol. `answer` says why it has its value, in one sentence."""

    symbol: str
    type: str
    value: str
    answer: str
    visible: str
    """The most that a person can set a bool or tristate to; `n` hides the prompt of any type."""
    definitions: tuple[Definition, ...]
    selected_by: tuple[Selection, ...]
    implied_by: tuple[Selection, ...]
    defaults: tuple[Default, ...]
    ranges: tuple[Range, ...]
    choice: tuple[str, ...] = ()
    """The symbols of the choice that it belongs to."""
    choice_selection: str | None = None
    help: str = ""
    requested: Option | None = None
    note: str = ""
    """What could not be evaluated, and why."""


class Problem(msgspec.Struct, frozen=True):
    """Why a request did not take effect."""

    option: Option
    kind: Literal["unknown", "type", "blocked", "limited", "promptless", "forced", "choice", "range", "other"]
    message: str
    """One line, without the place of the request."""
    blockers: tuple[Part, ...] = ()

    def __str__(self) -> str:
        return f"{self.option.place}: {self.message}"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker is to do. Values are those of `config`, or, without one, those of `base` and `options`."""

    environment: Mapping[str, str]
    """The whole of it, as Kbuild gives it to `conf`."""
    folder: str
    """Where to work: `cc-option` writes there."""
    machine: bool = True
    """Whether the compiler can be asked."""
    base: str = "allnoconfig"
    start: str | None = None
    """A starting `.config`, under `options`."""
    options: tuple[Option, ...] = ()
    config: str | None = None
    refused: tuple[str, ...] = ()
    """Requested symbols to explain: their request did not take effect."""
    explain: str | None = None
    predict: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's answer."""

    problems: tuple[Problem, ...] = ()
    explanation: Explanation | None = None
    no_symbol: str | None = None
    """Why `explain` is no symbol."""
    unknown: tuple[Problem, ...] = ()
    """Requests of `is not set` for what is no symbol: of no effect, and perhaps a typing error."""
    predicted: dict[str, str] | None = None
    """Of each symbol that belongs into `.config` its value there."""
    kconfig_files: tuple[str, ...] = ()
    """All that were read, relative to the tree."""
