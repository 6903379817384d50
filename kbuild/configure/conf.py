"""The kernel's own `conf` writes the configuration; each request is then held against it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kbuild import command, log, paths
from kbuild.configure.answer import Answer, Problem, Question
from kbuild.configure.fragment import Fragment, Option
from kbuild.configure.kconfig import MakeError, ask, environment, run_make
from kbuild.configure.memory import recall, remember
from kbuild.configure.request import Request, check, make_command
from kbuild.configure.tree import kernel_version
from kbuild.errors import KbuildError, UserError
from kbuild.outcome import Finding, Status, finding_id

ROOM_MB = 1
"""For `.config` and what the compiler's probes write."""

_LINE = re.compile(r"CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set")
_UNMET = re.compile(r"WARNING: unmet direct dependencies detected for (\w+)")
# conf's complaint about a Kconfig file; scripts/Kconfig.include is where it complains about the compiler.
_BROKEN = re.compile(r"(?!scripts/Kconfig\.include)[\w./+-]*Kconfig[\w./+-]*:\d+: ?.*")


class RefusedError(UserError):
    """Requests that did not take effect; one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


class BrokenKconfigError(KbuildError):
    """The tree's Kconfig files cannot be read by the tree's own `conf`: the kernel code is wrong."""

    status = Status.FAIL


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """A written `.config`, to which all requests are known to have come."""

    config: Path
    changed: bool
    """Whether its content is another than before."""
    reused: bool = False
    """Whether nothing was done, for all is as it was."""
    requested: tuple[Option, ...]
    findings: tuple[Finding, ...]
    """Information only (DONE)."""
    command: str
    """The last make command, as it can be pasted."""


def read_config(text: str) -> dict[str, str]:
    """Each symbol that `.config` names, without `CONFIG_`, with its value; `n` where it is not set."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            values[match[1] or match[3]] = match[2] if match[1] else "n"
    return values


def configure(
    source: Path,
    output: Path,
    request: Request,
    *,
    make_variables: Mapping[str, str] | None = None,
    predict: bool = False,
    reuse: bool = False,
) -> Configuration:
    """Write `output`/.config, and see that each request took effect.

    A `.config` of the same content is not touched, so that make does not build the world again. `predict` compares it
    also with what kconfiglib makes of the request (2 to 3 s); kconfiglib is asked in any case where a request did not
    take effect. `reuse`: give what an earlier call with `predict` gave, where the request, the `.config` and all files
    that were read are as they were then. `make_variables` go to make as they are (CC, LLVM, LOCALVERSION, …); the same
    have to be given when building. Raises RefusedError, other UserErrors, BrokenKconfigError, or HarnessError. The
    `.config` of refused requests is not written.
    """
    source, output, variables = source.resolve(), output.resolve(), make_variables or {}
    check(source, output, request)
    paths.make_folder(output)
    wanted = request.wanted(kernel_version(source))
    config = output / ".config"
    if reuse and (known := recall(source, output, request, variables)):
        return Configuration(
            config=config,
            changed=False,
            reused=True,
            requested=wanted.options,
            findings=known.findings,
            command=known.command,
        )
    with tempfile.TemporaryDirectory(prefix="kbuild-configure.") as scratch:
        new = Path(scratch, "config")
        with log.timed("configure.conf", base=request.base), _room(output, Path(scratch)):
            argv, said = _run_conf(source, output, request, variables, wanted, new)
        content = new.read_text("utf-8", "replace")
        values = read_config(content)
        doubtful = tuple(option.name for option in wanted.options if not _took_effect(option, values))
        answer = Answer()
        if doubtful or predict:
            answer = ask(
                Question(
                    environment=environment(source, output, request, variables).variables,
                    folder=scratch,
                    base=request.base,
                    start=str(request.start.resolve()) if request.start else None,
                    options=wanted.options,
                    config=str(new),
                    refused=doubtful,
                    predict=predict,
                )
            )
    if answer.problems:
        raise RefusedError(answer.problems)
    changed = not config.is_file() or config.read_text("utf-8", "replace") != content
    if changed:
        paths.write_atomically(config, content)
    done = Configuration(
        config=config,
        changed=changed,
        requested=wanted.options,
        findings=tuple(_findings(request, wanted, values, said, answer)),
        command=command.pasteable(argv),
    )
    if answer.predicted is not None:
        files, findings = answer.kconfig_files, done.findings
        remember(source, output, request, variables, kconfig_files=files, findings=findings, command=done.command)
    return done


@contextmanager
def _room(*folders: Path) -> Iterator[None]:
    """There is room in these folders, before and after.

    Kconfig asks the compiler what it can do by letting it write a file: on a full disk it seems to know no option at
    all, and the configuration would be another one without a word.
    """
    for folder in folders:
        paths.require_room(folder, ROOM_MB, "a configuration")
    yield
    for folder in folders:
        paths.require_room(folder, ROOM_MB, "a configuration")


def _run_conf(
    source: Path, output: Path, request: Request, variables: Mapping[str, str], wanted: Fragment, new: Path
) -> tuple[list[str], str]:
    """Let conf write the file `new`; the last command and all that was said."""
    every = new.with_name("requests")
    start = ""
    if request.start is not None:
        try:
            start = request.start.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{request.start}: cannot be read as a configuration to start from") from None
    said = ""

    def make(goal: str) -> list[str]:
        nonlocal said
        argv = make_command(source, output, request, variables, f"KCONFIG_CONFIG={new}", goal)
        try:
            said += run_make(argv, {"KCONFIG_ALLCONFIG": str(every)})
        except MakeError as error:
            if _BROKEN.fullmatch(error.line):
                raise BrokenKconfigError(f"conf cannot read the tree's Kconfig files: {error.line}") from None
            raise
        return argv

    paths.write_atomically(every, _merged(start, wanted))
    if request.base == "olddefconfig":
        paths.write_atomically(new, every.read_bytes())
    elif "defconfig" in request.base and request.base != "alldefconfig":
        make(request.base)
        paths.write_atomically(new, _merged(new.read_text() + start, wanted))
    else:
        return make(request.base), said
    return make("olddefconfig"), said


def _merged(base: str, wanted: Fragment) -> str:
    """A configuration in which the requests replace the lines about the same symbols."""
    names = {option.name for option in wanted.options}
    kept = [line for line in base.splitlines() if not ((m := _LINE.fullmatch(line)) and (m[1] or m[3]) in names)]
    return "".join(f"{line}\n" for line in kept) + wanted.text()


def _took_effect(option: Option, values: Mapping[str, str]) -> bool:
    """Whether `.config` has what was asked for. A symbol to be off that it does not name may not exist at all."""
    value = values.get(option.name)
    if value is not None and value.startswith("0x") and option.value[:2].lower() == "0x":
        return int(value, 16) == int(option.value, 16)
    return value == option.value


def _findings(
    request: Request, wanted: Fragment, values: Mapping[str, str], said: str, answer: Answer
) -> list[Finding]:
    """What is worth knowing though each request took effect."""
    findings = [
        _inform("overridden", one.later.name, "fragment", str(one), one.earlier.place.file, one.earlier.place.line)
        for one in wanted.overridden
    ]
    findings += [
        _inform("unmet-dependency", name, "select", f"{name} is selected though its dependencies do not hold")
        for name in dict.fromkeys(_UNMET.findall(said))
    ]
    findings += [Finding(id=unknown_symbol(p.option.name), status=Status.DONE, message=str(p)) for p in answer.unknown]
    if answer.predicted is not None:
        predicted = answer.predicted
        names = sorted(n for n in {*values, *predicted} if values.get(n, "n") != predicted.get(n, "n"))
        lines = tuple(f"{n}: conf {values.get(n, 'n')}, kconfiglib {predicted.get(n, 'n')}" for n in names)
        if lines:
            message = f"kconfiglib predicts {len(lines)} symbols otherwise than conf wrote them: {', '.join(names[:8])}"
            finding = _inform("prediction", request.base, "differs", message)
            findings.append(msgspec.structs.replace(finding, evidence=lines))
    return findings


def unknown_symbol(name: str) -> str:
    """The id of the finding that a symbol was to be off that the tree does not have."""
    return finding_id("configure", "unknown-symbol", name, "is-not-set")


def _inform(
    kind: str, subject: str, cause: str, message: str, file: str | None = None, line: int | None = None
) -> Finding:
    return Finding(
        id=finding_id("configure", kind, subject, cause), status=Status.DONE, message=message, file=file, line=line
    )
