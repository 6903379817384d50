"""What the compiler, the linker and modpost said, as findings: takes lines of output, runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kbuild.command import HOST_FAILED
from kbuild.outcome import Finding, Status, finding_id

_COMPILER = re.compile(
    r"(?P<file>[^\s:]+\.[chSsly]):(?P<line>\d+)(?::\d+)?: (?P<kind>warning|error|fatal error): (?P<text>.*?)"
    r"(?: \[(?P<option>-W[^\]]+)\])?$"
)
_MODPOST = re.compile(r"(?P<kind>WARNING|ERROR): modpost: (?:(?P<module>[\w./-]+?)(?:\.o)?: )?(?P<text>.*)")
_IN_MODULE = re.compile(r"\[(?P<module>[\w./-]+)\.ko\]")
"""`"svm_do" [arch/x86/kvm/kvm-amd.ko] undefined!`"""
_OBJTOOL = re.compile(r"(?P<object>\S+\.o): (?P<kind>warning|error): objtool: (?P<text>.*)")
_UNDEFINED = re.compile(r"(?P<place>\S+): undefined reference to `(?P<symbol>[^']+)'")
_MAKE = re.compile(r"make(?:\[\d+\])?: \*\*\* (?P<text>.*)")
_CONTEXT = re.compile(r"\s*\d* \|")


@dataclass(frozen=True)
class Diagnostic:
    """One message, with its place in the tree."""

    kind: str
    """`warning` or `error`."""
    tool: str
    """`compiler`, `modpost`, `objtool`, `linker` or `make`."""
    text: str
    file: str | None = None
    line: int | None = None
    option: str | None = None
    module: str | None = None
    context: tuple[str, ...] = ()
    """The source lines that the compiler showed."""


def read_diagnostics(lines: Iterable[str], source: Path) -> list[Diagnostic]:
    """The messages in make's output, in order; paths become relative to the tree."""
    found: list[Diagnostic] = []
    seen: set[tuple[object, ...]] = set()
    for line in lines:
        if found and _CONTEXT.match(line) and found[-1].tool == "compiler" and len(found[-1].context) < 3:
            last = found[-1]
            found[-1] = Diagnostic(**{**vars(last), "context": (*last.context, line)})
            continue
        diagnostic = _read(line, source)
        # A header's warning comes once for each file that includes it.
        if diagnostic and (key := (diagnostic.tool, diagnostic.file, diagnostic.line, diagnostic.text)) not in seen:
            seen.add(key)
            found.append(diagnostic)
    return found


def _read(line: str, source: Path) -> Diagnostic | None:
    if match := _COMPILER.match(line):
        kind = "warning" if match["kind"] == "warning" else "error"
        file = _relative(match["file"], source)
        return Diagnostic(kind, "compiler", match["text"], file, int(match["line"]), match["option"])
    if match := _MODPOST.match(line):
        module = match["module"] or ((place := _IN_MODULE.search(match["text"])) and place["module"])
        return Diagnostic(match["kind"].lower(), "modpost", match["text"], module=Path(module).name if module else None)
    if match := _OBJTOOL.match(line):
        return Diagnostic(match["kind"], "objtool", match["text"], _relative(match["object"], source))
    if match := _UNDEFINED.search(line):
        return Diagnostic("error", "linker", f"undefined reference to '{match['symbol']}'", match["place"].rstrip(":"))
    if match := _MAKE.match(line):
        return Diagnostic("error", "make", match["text"])
    return None


def _relative(path: str, source: Path) -> str:
    """A path below the source folder, however make wrote it."""
    for prefix in (f"{source}/", "../src/"):
        if path.startswith(prefix):
            return path[len(prefix) :]
    return path.removeprefix("./")


_NO_KERNEL = re.compile(
    r"undefined!$|[Ss]ymbol info of vmlinux is missing|suppressed \d+ unresolved symbol|uses symbol \S+ from namespace"
)
"""What modpost says where it was not told what the kernel exports (scripts/mod/modpost.c, check_exports())."""


def machines_fault(lines: Iterable[str]) -> str | None:
    """The first line that blames the machine; None: none does. Source that a compiler shows is not its own word."""
    return next((line for line in lines if HOST_FAILED.search(line) and not _CONTEXT.match(line)), None)


def warning_status(tool: str, file: str | None, counting: Sequence[str]) -> Status:
    """How a warning counts: of modpost, which looks at the modules, each does; else below one of these folders."""
    return Status.FAIL if tool == "modpost" or (file or "").startswith(tuple(counting)) else Status.DONE


def counted_anew(findings: Iterable[Finding], counting: Sequence[str]) -> tuple[Finding, ...]:
    """The findings of an earlier build, with the warnings as they count now."""
    return tuple(
        msgspec.structs.replace(one, status=warning_status("compiler", one.file, counting))
        if one.id.startswith("build:warning:") and one.file is not None
        else one
        for one in findings
    )


def to_findings(
    diagnostics: Sequence[Diagnostic], *, failed: bool, counting: Sequence[str], whole: bool = True
) -> list[Finding]:
    """Findings for the messages; a warning counts when its file is below one of the `counting` folders.

    Of errors only the first is a finding when the build failed: those after it are mostly its echo,
    and all are in the build's log. Of a build that is no `whole` kernel, made with `make -k`, each error of compiler,
    linker and modpost is one, and what modpost says for want of a kernel is none.
    """
    if not whole:
        diagnostics = [one for one in diagnostics if not (one.tool == "modpost" and _NO_KERNEL.search(one.text))]
    findings: list[Finding] = []
    for one in diagnostics:
        if one.kind != "warning":
            continue
        findings.append(_finding(one, warning_status(one.tool, one.file, counting)))
    if failed and not whole:
        errors = [one for one in diagnostics if one.kind == "error"]
        said = [one for one in errors if one.tool != "make"]
        return [*(_finding(one, Status.FAIL) for one in said or errors[:1]), *findings]
    if failed:
        errors = [one for one in diagnostics if one.kind == "error"]
        first = next((one for one in errors if one.tool != "make"), errors[0] if errors else None)
        # modpost tells each section mismatch as a warning, and then that there were some: an error of no module.
        told = any(one.tool == "modpost" and one.kind == "warning" and one.module for one in diagnostics)
        if first is not None and not (told and first.tool == "modpost" and first.module is None):
            findings.insert(0, _finding(first, Status.FAIL))
    return findings


def _finding(one: Diagnostic, status: Status) -> Finding:
    place = f"{one.file}:{one.line}: " if one.line else f"{one.file or one.module}: " if one.file or one.module else ""
    option = f" [{one.option}]" if one.option else ""
    return Finding(
        id=finding_id("build", one.kind, one.file or one.module or one.tool, one.option or _cause(one.text)),
        status=status,
        message=f"{place}{one.kind}: {one.text}{option}"
        if one.tool == "compiler"
        else f"{one.tool}: {place}{one.text}",
        evidence=one.context,
        module=one.module,
        file=one.file,
        line=one.line,
        option=one.option,
    )


def _cause(text: str) -> str:
    """The message without what moves from build to build (numbers, offsets), for a stable id."""
    words = re.sub(r"0x[0-9a-f]+|\d+", "N", text.replace("‘", "'").replace("’", "'"))
    return re.sub(r"[^\w'.+-]+", "-", words).strip("-")[:80]
