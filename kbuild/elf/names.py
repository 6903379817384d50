"""Names of symbols, as they are the same in every build."""

from __future__ import annotations

import re

LOADER_CALLS = ("init_module", "cleanup_module")
"""The functions that the loader calls, by the names that it finds them by (include/linux/module.h)."""
_SUFFIX = re.compile(r"(?:\.(?:constprop|isra|part|cold|llvm|lto_priv)(?:\.\d+)*)+$")
"""What a compiler puts behind a function's name when it makes another one of it."""
_NUMBER = re.compile(r"(?<=.)\.\d+(?=\.|$)")


def plain_name(symbol: str) -> str:
    """Without the numbers that a compiler adds, which change with other code: `foo.constprop.0` is `foo.constprop`."""
    return _NUMBER.sub("", symbol)


def stem(symbol: str) -> str:
    """Without all that a compiler adds to a function's name, as it is in the source."""
    return _SUFFIX.sub("", symbol) if "." in symbol else symbol
