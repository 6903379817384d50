"""This machine as a worker: Dask's own, with what is found here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kbuild.cluster.address import scheduler_address
from kbuild.cluster.needs import offers
from kbuild.errors import HarnessError, UserError

DEATH_S = 60
"""Without its scheduler a worker ends after so many seconds."""


def become_worker(address: str, cpus: str | None, networks: Sequence[str], name: str | None) -> NoReturn:
    """Replace this process by a Dask worker. Raises UserError for wrong words, HarnessError where it has nothing."""
    here = os.cpu_count() or 1
    if cpus is not None and not (cpus.isdecimal() and 1 <= int(cpus) <= here):
        raise UserError(f"--cpus {cpus}: a number up to {here}, as many as this machine has")
    address = scheduler_address(address)
    if wrong := next((one for one in networks if not one or set(one) & set(" ,=")), None):
        raise UserError(f"--network '{wrong}': a name without blanks, commas and '='")
    count = int(cpus or here)
    found = offers(count, networks)
    if not found:
        raise HarnessError("neither QEMU nor Bochs is installed here, and no --network is named: nothing to offer")
    print(f"offers {', '.join(found)}: {count} cells at once", flush=True)
    argv = [
        *(sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", str(count)),
        # Its emulators are not Dask's to count, and its own data is small.
        *("--memory-limit", "0", "--no-dashboard", "--death-timeout", str(DEATH_S)),
        *("--resources", ",".join(f"{name}={units}" for name, units in found.items())),
        *(("--name", name) if name else ()),
    ]
    sys.stdout.flush()
    os.execv(argv[0], argv)
