"""A machine of somebody's own for as long as a run uses it: had from its lab, taken, and given back to both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from kbuild.errors import HarnessError
from kbuild.hosts.spec import HostSpec, check
from kbuild.hosts.ssh.target import Target
from kbuild.hosts.waiting import Waiting


def reached(spec: HostSpec, waiting: Waiting) -> AbstractContextManager[HostSpec]:
    """The host as one of kind `ssh`, while its lab leaves it to us. Raises as `lab.held` does."""
    if spec.labgrid is None:
        return nullcontext(spec)
    if lacks := check(spec):
        raise HarnessError(lacks[0])
    from kbuild.hosts.lab.held import held

    return held(spec, waiting)


@contextmanager
def visit(spec: HostSpec, run: str, tell: Callable[[str], None], cancelled: Callable[[], bool]) -> Iterator[Target]:
    """Have a host and take it, as `Target` does; `tell` hears for whom it waits, `cancelled` ends that."""
    seconds = spec.labgrid.wait_s if spec.labgrid is not None else 0
    with reached(spec, Waiting(seconds, tell, cancelled)) as there, Target(there, run) as target:
        yield target


def put_back(spec: HostSpec, *, force: bool) -> str:
    """After a run that was killed; says what was done. `force`: also where it is somebody else's run."""
    with reached(spec, Waiting(0)) as there:
        return Target(there, "restore").put_back(force=force)
