"""KVM's own selftests: programs of a tree's tools/testing/selftests/kvm, built for a host that has no libraries."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import posixpath
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kbuild import command, log
from kbuild.build.artifacts import artifact, is_whole, put
from kbuild.build.diagnostics import read_diagnostics
from kbuild.build.make import call, refuse_machines_fault
from kbuild.build.request import BuildRequest
from kbuild.errors import HarnessError, UserError, os_errors
from kbuild.paths import make_folder, write_atomically

TESTS = "tools/testing/selftests/kvm"
_PLACES = ("", "x86/", "x86_64/")
"""Where sources are: those of x86 are in `x86` since 6.14."""
_INPUTS = (TESTS, "tools/testing/selftests/rseq", "tools/include", "tools/arch/x86/include")
"""Folders of what the programs are made of; headers of the selftests themselves and of the kernel besides."""
NOT_COMPILED = "it does not compile: "
"""How the reason begins why there is no program."""
_STATE = "programs.json"
_ELF = b"\x7fELF"
_INTERPRETER = 3
"""PT_INTERP, the program header of a program that wants a loader (System V ABI, program header)."""


@dataclass(frozen=True)
class Programs:
    """What there is to be run."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """Static x86-64 programs by the name of the test."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Tests, or globs over them, that there are not, and why."""

    def named(self, asked: str) -> list[str]:
        """The tests that a name or glob means."""
        return fnmatch.filter(sorted(self.files), asked)

    def lacking(self, asked: str) -> dict[str, str]:
        """The tests that a name or glob means and that there are not, with the reasons."""
        return {name: why for name, why in self.absent.items() if fnmatch.fnmatchcase(name, asked)}

    def why_not(self, asked: str) -> str:
        """Of what means no test, or of a test that there is not: the reason."""
        none = "there are no selftests with these files: build a tree, or give --selftests FOLDER with static programs"
        return self.absent.get(asked, none)


class _State(msgspec.Struct):
    """What a folder of built tests holds."""

    tree: str
    asked: list[str]
    programs: dict[str, str]
    """Of a test the SHA-256 of its program."""
    absent: dict[str, str]


def test_of(path: str) -> str | None:
    """The test for x86 that a file of a tree is the source of; None: it is of none, or several share it."""
    folder, name = posixpath.split(path)
    made = name.endswith(".c") and folder in [posixpath.join(TESTS, place).rstrip("/") for place in _PLACES]
    return name.removesuffix(".c") if made else None


def find_selftests(folder: Path, asked: Collection[str]) -> Programs:
    """The tests that were asked for, of those that somebody built. Raises UserError for what no host can run."""
    if not folder.is_dir():
        raise UserError(f"--selftests {folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted((inside for place in _PLACES for inside in (folder / place).glob("*")), reverse=True):
        # Objects, scripts and dependencies lie there as well, and have another name or another content.
        named = "." not in path.name and any(fnmatch.fnmatch(path.name, name) for name in asked)
        if named and path.is_file() and (start := _start(path)).startswith(_ELF):
            if reason := _not_for_a_host(start):
                raise UserError(f"{path}: {reason}")
            files[path.name] = path
    none = f"{folder} has no such program"
    return Programs(files, {name: none for name in asked if not fnmatch.filter(files, name)})


def _start(path: Path) -> bytes:
    with os_errors(), path.open("rb") as file:
        return file.read(1 << 16)


def _not_for_a_host(start: bytes) -> str | None:
    """The fields of the ELF header and of program headers are where the gABI, chapters 4 and 5, has them."""
    if start[4:5] != b"\2" or start[18:20] != b"\x3e\x00":
        return "is no x86-64 program"
    at, size, count = (int.from_bytes(start[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    kinds = {int.from_bytes(start[at + n * size :][:4], "little") for n in range(count)}
    dynamic = "needs libraries, which a host does not have: build it with USERLDFLAGS=-static"
    return dynamic if _INTERPRETER in kinds else None


def build_selftests(request: BuildRequest, asked: Collection[str], log_file: Path) -> Programs:
    """Build the tests that are asked for, by name or glob, out of a tree whose kernel is built.

    Of one that does not compile the first error is the reason why there is none. Raises HarnessError where make
    cannot be started.
    """
    home = request.objects / "kvm-selftests"
    state = _read(home / _STATE)
    same = state is not None and state.tree == request.tree.identity and {*asked} <= {*state.asked}
    if state and same and all(map(is_whole, state.programs.values())):
        return _programs(state, asked)
    if not (request.tree.source / TESTS / "Makefile").is_file():
        return Programs(absent=dict.fromkeys(asked, f"the tree has no {TESTS}"))
    with log.timed("selftests", asked=sorted(asked)):
        state = _build(request, asked, home, log_file)
    write_atomically(home / _STATE, msgspec.json.encode(state))
    return _programs(state, asked)


def _programs(state: _State, asked: Collection[str]) -> Programs:
    wanted = {name for one in asked for name in fnmatch.filter(state.programs, one)}
    return Programs({name: artifact(state.programs[name]) for name in sorted(wanted)}, state.absent)


def _build(request: BuildRequest, asked: Collection[str], home: Path, log_file: Path) -> _State:
    headers = call(request.tree.source, request.objects, request.variables, ("headers",), _jobs())
    status, said = _make(request, headers, log_file)
    if status:
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        absent = dict.fromkeys(asked, f"{NOT_COMPILED}make headers: {last}")
        return _State(request.tree.identity, sorted(asked), {}, absent)
    # In 6.1 their Makefile knows no dependence on headers: in a folder of other bytes nothing is up to date.
    folder = make_folder(home) / _digest(request)
    for other in home.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other, ignore_errors=True)
    make_folder(folder)
    there = _there(request, folder)
    chosen = {name: there[name] for one in asked for name in fnmatch.filter(there, one)}
    how = ("-k", f"-j{_jobs()}", "-Otarget", *(str(folder / place) for place in chosen.values()))
    _, said = _make(request, [*_argv(request, folder), *how], log_file) if chosen else (0, [])
    programs = {name: put(folder / place) for name, place in chosen.items() if (folder / place).is_file()}
    none = f"the tree's {TESTS} has no such test for x86"
    absent = {one: none for one in asked if not fnmatch.filter(there, one)}
    if failed := [name for name in chosen if name not in programs]:
        errors = [
            one
            for one in read_diagnostics(said, request.tree.source)
            if one.kind == "error" and one.tool in ("compiler", "linker")
        ]
        if not errors:
            raise HarnessError(f"{failed[0]} was not built, and make named no error; see {log_file}")
        for name in failed:
            own = next((one for one in errors if one.file and Path(one.file).stem == name), errors[0])
            absent[name] = f"{NOT_COMPILED}{own.file}{f':{own.line}' if own.line else ''}: {own.text}"
    return _State(request.tree.identity, sorted(asked), programs, absent)


def _there(request: BuildRequest, folder: Path) -> dict[str, str]:
    """The tests that the tree's Makefile makes, each with its place below the folder. Scripts are none."""
    listed = command.run([*_argv(request, folder), "-s", "emit_tests", "COLLECTION=kvm"], env=request.environment)
    names = re.findall(r"^kvm:(\S+)$", listed.output, re.MULTILINE)
    source = request.tree.source / TESTS
    return {name: place + name for name in names for place in _PLACES if (source / f"{place}{name}.c").is_file()}


def _argv(request: BuildRequest, folder: Path) -> list[str]:
    headers = request.objects / "usr"
    variables = {
        "CC": request.variables["CC"],
        "ARCH": "x86_64",
        "CROSS_COMPILE": "",
        "OUTPUT": str(folder),
        "KHDR_INCLUDES": f"-isystem {headers}/include",
        "INSTALL_HDR_PATH": str(headers),
        # A host has no libraries, and what is loaded into each machine had better be small.
        "USERLDFLAGS": "-static -s",
    }
    return ["make", "-C", str(request.tree.source / TESTS), *(f"{name}={value}" for name, value in variables.items())]


def _make(request: BuildRequest, argv: Sequence[str], log_file: Path) -> tuple[int, list[str]]:
    """Status and output. Raises HarnessError where it was the machine that failed: of the tests that says nothing."""
    lines: list[str] = []
    done = command.run(argv, env=request.environment, on_line=lines.append, log_file=log_file, check=False)
    if done.status:
        refuse_machines_fault(done.status, lines, "the build of selftests", request.objects, log_file)
    return done.status, lines


def _jobs() -> int:
    return os.cpu_count() or 1


def _digest(request: BuildRequest) -> str:
    """Of every byte that the programs are made of, as far as make does not look."""
    digest = hashlib.sha256(repr(sorted(request.toolchain.versions.items())).encode())
    for path in _inputs(request):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _inputs(request: BuildRequest) -> Iterator[Path]:
    shared = request.tree.source / "tools/testing/selftests"
    yield from sorted(path for path in shared.glob("*") if path.suffix in (".h", ".mk"))
    for folder in (*(request.tree.source / one for one in _INPUTS), request.objects / "usr/include"):
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".cmd")


def _read(path: Path) -> _State | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_State)
    except (OSError, msgspec.DecodeError):
        return None
