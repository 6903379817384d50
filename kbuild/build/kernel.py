"""The build stage: a configured tree to artifacts, with a way to do it again by hand."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kbuild import log
from kbuild.build.artifacts import Built, artifacts_in_use, is_whole, put
from kbuild.build.diagnostics import counted_anew, read_diagnostics, to_findings
from kbuild.build.make import MakeResult, Progress, refuse_machines_fault, run_make
from kbuild.build.reproduce import describe
from kbuild.build.request import KERNEL, BuildRequest
from kbuild.configure.tree import waiting_lock
from kbuild.errors import HarnessError
from kbuild.outcome import Finding, Status
from kbuild.paths import cache_home, locked, make_folder, mark_used, write_atomically

MEMORY = "kvm-kbuild.json"
"""In an object folder: what it knows of itself. Its time is that of the last use."""
_UNFINISHED = "kvm-kbuild.unfinished"
MAX_EARLIER = 32
"""Builds that an object folder remembers besides its last."""
_LAST = "last-build.steps"


@dataclass(frozen=True)
class BuildResult:
    """What a build gave. `built` is None when it failed; then a finding says why."""

    built: Built | None
    findings: tuple[Finding, ...]
    reused: bool
    seconds: float


class _Memory(msgspec.Struct):
    """What an object folder knows of itself; kept beside its files."""

    steps: int = 0
    """Commands of the largest build here: what a build from nothing takes."""
    messages: dict[str, list[str]] = {}
    """What was made to the messages that came with it: an incremental build does not repeat them."""
    built: Built | None = None
    """What its files are."""
    earlier: list[Built] = []
    """What they were before, last used first: patches are tried in turn."""


@contextlib.contextmanager
def building(request: BuildRequest) -> Iterator[None]:
    """Keep every other run away from the object folder until the context ends, and wait for what one left there."""
    objects = request.objects
    with waiting_lock(objects.with_name(f".{objects.name}.lock"), request.tree.asked):
        with locked(_compilers(objects)):
            pass
        yield


def _compilers(objects: Path) -> Path:
    """Locked as long as anything that make started is there: a run that was killed may have died before it."""
    return objects.with_name(f".{objects.name}.make")


def find_built(request: BuildRequest) -> BuildResult | None:
    """The result of an earlier build of the same bytes, if every byte of it is still there."""
    for built in remembered(request.objects):
        if built.tree == request.tree.identity and all(map(is_whole, built.files.values())):
            _use(request.objects, built)
            return BuildResult(built, counted_anew(built.findings, request.warnings_count), True, 0.0)
    return None


def _use(objects: Path, built: Built) -> None:
    """Put off the time when an object folder forgets a build."""
    memory = _remember(objects)
    if memory.earlier[:1] != [built] and built in memory.earlier:
        memory.earlier.remove(built)
        memory.earlier.insert(0, built)
        with contextlib.suppress(HarnessError):  # a folder that cannot be written to gives what it has
            write_atomically(objects / MEMORY, msgspec.json.encode(memory))
    mark_used(objects / MEMORY)


def build(request: BuildRequest, folder: Path, report: Callable[[Progress], None] | None = None) -> BuildResult:
    """Build the kernel and its modules in the object folder, which holds a `.config`.

    `folder` is the run's: `metadata.json`, `reproduce.sh` and `config` are there before make starts, and
    `build.log` has all it prints. A compile error is a result with a finding; HarnessError is raised
    where the machine failed (disk full, compiler killed).
    """
    objects = request.objects
    describe(request, folder, objects / ".config")
    memory = _remember(objects)
    log_file = folder / "build.log"
    # Until make has come to its end, nothing here passes for whole.
    if memory.built:
        memory.earlier = [memory.built, *(one for one in memory.earlier if one.tree != memory.built.tree)][:MAX_EARLIER]
        memory.built = None
    write_atomically(objects / MEMORY, msgspec.json.encode(memory))
    write_atomically(objects / _UNFINISHED, "")
    config = (objects / ".config").read_bytes()
    with log.timed("make", objects=str(objects)):
        made = run_make(
            request.argv,
            environment=request.environment,
            log_file=log_file,
            lock=_compilers(objects),
            expected=memory.steps or (_last_steps() if request.whole else None),
            report=report,
        )
    if (objects / ".config").read_bytes() != config:
        # Kconfig asks the compiler anew: one that could not answer (a full disk) has no say in what is built.
        raise HarnessError(f"{objects}/.config: make changed it while it built; see {log_file}")
    memory.steps = max(memory.steps, made.steps)
    memory.messages |= {unit: lines for unit, lines in made.units.items() if unit}
    memory.messages = {unit: lines for unit, lines in memory.messages.items() if lines and _is_there(objects, unit)}
    lines = [*made.units[""], *(line for lines in memory.messages.values() for line in lines)]
    if made.status:
        # What was compiled before and is not at fault is worth a word only where make goes on behind an error.
        lines = made.messages if request.whole else [*made.messages, *lines]
    if made.status == 0:
        # What make said is remembered: should the artifacts not fit on the disk, it need not start from nothing.
        write_atomically(objects / MEMORY, msgspec.json.encode(memory))
        (objects / _UNFINISHED).unlink()
    with artifacts_in_use():
        result = _judge(request, made, lines, log_file)
        memory.built = result.built
        write_atomically(objects / MEMORY, msgspec.json.encode(memory))
    if request.whole and result.built and made.steps == memory.steps:
        write_atomically(cache_home() / _LAST, str(made.steps))
    (objects / _UNFINISHED).unlink(missing_ok=True)
    return result


def _last_steps() -> int | None:
    """Commands of the last build from nothing, of whatever tree: the estimate for a folder without a past."""
    try:
        return int((cache_home() / _LAST).read_text("ascii"))
    except (OSError, ValueError):
        return None


def prepare_objects(request: BuildRequest) -> None:
    """Make the object folder, empty where an earlier build in it was cut off.

    A compiler's message of that build may have been lost, and make would not compile that file again.
    """
    if (request.objects / _UNFINISHED).exists():
        log.get().warning("the last build here was cut off: starting from nothing", objects=str(request.objects))
        shutil.rmtree(request.objects, ignore_errors=True)
    make_folder(request.objects)


def _judge(request: BuildRequest, made: MakeResult, lines: Sequence[str], log_file: Path) -> BuildResult:
    diagnostics = read_diagnostics(lines, request.tree.source)
    failed = made.status != 0
    counting = request.warnings_count
    findings = tuple(to_findings(diagnostics, failed=failed, counting=counting, whole=request.whole))
    if made.status:
        refuse_machines_fault(made.status, made.messages, "the build", request.objects, log_file)
        if not any(finding.status == Status.FAIL for finding in findings):
            last = next(iter(made.messages[-1:]), "no message")
            raise HarnessError(f"make ended with status {made.status} and named no error: {last}; see {log_file}")
        return BuildResult(None, findings, False, made.seconds)
    built = Built(
        tree=request.tree.identity,
        release=(request.objects / "include/config/kernel.release").read_text("ascii").strip(),
        files={name: put(path) for name, path in outputs(request.objects, request.targets).items()},
        findings=findings,
        seconds=made.seconds,
    )
    return BuildResult(built, findings, False, made.seconds)


def outputs(objects: Path, targets: Sequence[str] = KERNEL) -> dict[str, Path]:
    """The files that a finished build gives, by the name that they have as artifacts; of parts the modules alone."""
    if targets == KERNEL:
        files = _kernel_files(objects)
    else:
        parts = [objects / target for target in targets if target.endswith(".ko")]
        files = {"config": objects / ".config", **{path.name: path for path in parts}}
    for path in files.values():
        if not path.is_file():
            raise HarnessError(f"{path}: missing although make ended well")
    return files


def _kernel_files(objects: Path) -> dict[str, Path]:
    modules = [Path(line).with_suffix(".ko") for line in (objects / "modules.order").read_text("utf-8").split()]
    return {
        "bzImage": objects / "arch/x86/boot/bzImage",
        "vmlinux": objects / "vmlinux",
        "System.map": objects / "System.map",
        "Module.symvers": objects / "Module.symvers",
        "config": objects / ".config",
        **{path.name: objects / path for path in modules},
    }


def remembered(objects: Path) -> list[Built]:
    """The finished builds that an object folder knows of, what its files are first; their artifacts may be gone."""
    memory = _remember(objects)
    return [*([memory.built] if memory.built else []), *memory.earlier]


def _remember(objects: Path) -> _Memory:
    try:
        return msgspec.json.decode((objects / MEMORY).read_bytes(), type=_Memory)
    except (OSError, msgspec.DecodeError):
        return _Memory()


def _is_there(objects: Path, unit: str) -> bool:
    """Whether what a message came with is still part of the build; not all names of Kbuild are files.

    An object stays when its source has left the tree: what it was made of is said beside it.
    """
    if not unit.endswith(".o"):
        return True
    try:
        made = (objects / unit).with_name(f".{Path(unit).name}.cmd").read_text("utf-8", "replace")
    except OSError:
        return (objects / unit).exists()
    source = re.search(r"^source_\S+ := (\S+)$", made, re.MULTILINE)
    return (objects / unit).exists() and (source is None or (objects / source[1]).exists())
