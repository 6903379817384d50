"""Fragments: the symbols that somebody asks for, each with its place and its reason.

The form is that of `.config`, with one liberty: a line may end in `# why`, which the kernel's own reader
(scripts/kconfig/confdata.c, conf_read_simple()) would take for a part of the value. `text()` prints the strict form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import msgspec

from kbuild.errors import UserError
from kbuild.paths import read_text
from kbuild.versions import KernelRange

_SET = re.compile(r'CONFIG_(\w+)=("(?:[^"\\]|\\.)*"|[^\s"#]+)(?:\s+#\s*(.*))?')
_UNSET = re.compile(r"#\s*CONFIG_(\w+) is not set(?:\s+#\s*(.*))?")
_KERNELS = re.compile(r"kernels\b([^:]*):\s*(.*)")
_VALUE = re.compile(r'[ymn]|-?\d+|0[xX][0-9a-fA-F]+|".*"')


class Place(msgspec.Struct, frozen=True):
    """A line of a file, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Option(msgspec.Struct, frozen=True):
    """One requested symbol."""

    name: str
    """Without `CONFIG_`."""
    value: str
    """`y`, `m`, `n` (also for `is not set`), a number, or a string in its quotes, all as in `.config`."""
    place: Place
    reason: str = ""
    kernels: str = ""
    """The range of kernels that it is asked of (`7.3 -`); empty: all. Text, for a worker process gets it as JSON."""

    def __str__(self) -> str:
        return f"# CONFIG_{self.name} is not set" if self.value == "n" else f"CONFIG_{self.name}={self.value}"


class Overridden(msgspec.Struct, frozen=True):
    """A request that a later fragment replaced by another value."""

    earlier: Option
    later: Option

    def __str__(self) -> str:
        return f"{self.earlier.place}: {self.earlier} is overridden by {self.later.place}: {self.later}"


class Fragment(msgspec.Struct, frozen=True):
    """Requested symbols in their order, each of them once for each kernel."""

    options: tuple[Option, ...] = ()
    overridden: tuple[Overridden, ...] = ()
    """What `merge` replaced; empty in a fragment as read."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises UserError, `file:line: what is wrong`."""
        return cls.parse(read_text(path), str(path))

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Like `read`, of text that came from `name`.

        A reason is what follows `#` on the line, or else the comment above; that one holds for all lines up to the
        next blank line or comment. One that begins `kernels RANGE:` limits the line to these kernels.
        """
        options: list[Option] = []
        comment: list[str] = []
        used = False  # whether an option stands between the comment and here
        for number, raw in enumerate(text.splitlines(), 1):
            place, line = Place(name, number), raw.strip()
            match = _UNSET.fullmatch(line) or _SET.fullmatch(line)
            if match is None:
                if line and not line.startswith("#"):
                    raise UserError(f"{place}: '{line[:80]}' is neither 'CONFIG_X=value' nor '# CONFIG_X is not set'")
                comment = [*([] if used or not line else comment), *([line.lstrip("# ")] if line.strip("# ") else [])]
                used = False
                continue
            used = True
            symbol, *value, why = match.groups()
            if value and not _VALUE.fullmatch(value[0]):
                raise UserError(f'{place}: CONFIG_{symbol}={value[0]}: write y, m, n, a number or a "string"')
            kernels, reason = _limited((why or "").strip() or " ".join(comment), place)
            option = Option(symbol, value[0] if value else "n", place, reason, str(kernels))
            for earlier in options:
                if earlier.name == symbol and kernels.overlaps(KernelRange(earlier.kernels)):
                    same = earlier.value == option.value
                    what = "set twice" if same else f"set to {earlier.value} and {option.value}"
                    raise UserError(f"{place}: CONFIG_{symbol} is {what}; first in line {earlier.place.line}")
            options.append(option)
        return cls(tuple(options))

    def for_kernel(self, version: str) -> Fragment:
        """What is asked of a kernel of that version."""
        options = tuple(option for option in self.options if version in KernelRange(option.kernels))
        return Fragment(options, self.overridden)

    def text(self) -> str:
        """The form on disk that the kernel's tools read (KCONFIG_ALLCONFIG, or a `.config` to complete)."""
        return "".join(f"{option}\n" for option in self.options)

    def without_reason(self) -> tuple[Option, ...]:
        """The lines that do not say why they are there."""
        return tuple(option for option in self.options if not option.reason)


def _limited(comment: str, place: Place) -> tuple[KernelRange, str]:
    """The kernels that a comment names, and its reason."""
    match = _KERNELS.fullmatch(comment)
    if match is None:
        return KernelRange(), comment
    try:
        return KernelRange(match[1].strip()), match[2]
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def merge(fragments: Iterable[Fragment]) -> Fragment:
    """One fragment of several that are for one kernel. The later one wins, and `overridden` says so."""
    options: dict[str, Option] = {}
    overridden: list[Overridden] = []
    for fragment in fragments:
        overridden += fragment.overridden
        for option in fragment.options:
            earlier = options.get(option.name)
            if earlier is not None and earlier.value != option.value:
                overridden.append(Overridden(earlier, option))
            options[option.name] = option
    return Fragment(tuple(options.values()), tuple(overridden))
