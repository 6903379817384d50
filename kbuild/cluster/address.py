"""Where a cluster's scheduler is."""

from __future__ import annotations

import re

from kbuild.errors import UserError

_ADDRESS = re.compile(r"(tcp|tls|ws|wss)://(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}")


def scheduler_address(text: str) -> str:
    """The same address. Raises UserError for what Dask could not connect to."""
    if not _ADDRESS.fullmatch(text):
        raise UserError(f"'{text}' is no address of a Dask scheduler: tcp://HOST:PORT")
    return text
