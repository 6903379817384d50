"""Names of symbols, as they are the same in every build."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?<=.)\.\d+(?=\.|$)")


def plain_name(symbol: str) -> str:
    """Without the numbers that a compiler adds, which change with other code: `foo.constprop.0` is `foo.constprop`."""
    return _NUMBER.sub("", symbol)
