"""What a series changes: files, the areas that they are in, and the module parameters that they define."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kbuild.barrecord import Area, Parameter, Touched
from kbuild.barspec import BarArea, BarSettings
from kbuild.build.selftests import TESTS
from kbuild.configure import git
from kbuild.errors import HarnessError

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# include/linux/moduleparam.h: the name that a user gives comes first, its type or operations second or third.
_PARAMETER = re.compile(
    r"^[ \t]*(?P<macro>module_param(?:_cb|_array|_string|_hw)?(?:_named)?(?:_unsafe)?)"
    r"\s*\((?P<arguments>[^;]*?)\)\s*;",
    re.MULTILINE | re.DOTALL,
)
_TYPE_AT = {
    "module_param": 1,
    "module_param_unsafe": 1,
    "module_param_hw": 1,
    "module_param_named": 2,
    "module_param_named_unsafe": 2,
    "module_param_hw_named": 2,
    "module_param_array": 1,
    "module_param_array_named": 2,
    "module_param_cb": 1,
    "module_param_cb_unsafe": 1,
}
"""Which argument, from 0, says what values it takes; of a string none does."""
SWITCHES = ("bool", "bint", "bool_enable_only")
"""include/linux/moduleparam.h, param_check_*()."""
ON_AND_OFF: tuple[str | int, ...] = (1, 0)


@dataclass(frozen=True)
class Declared:
    """A parameter as a source file declares it."""

    name: str
    kind: str


def changed_files(tree: str, base: str, tip: str, *more: str) -> tuple[str, ...]:
    """The files that differ between two commits, by both names where one was renamed. `more`: options of git diff."""
    argv = ("-C", tree, "-c", "core.quotePath=true", "diff", "--name-only", "--no-renames", "--no-ext-diff", *more)
    done = git.call(*argv, base, tip, "--", timeout=120, check=False)
    if done.status:
        raise HarnessError(f"{tree}: git diff: {done.output.strip()[-200:]}")
    return tuple(git.unquote(line) for line in done.output.splitlines() if line)


def file_at(tree: str, commit: str, path: str) -> str:
    """A file of a commit; empty where it has none of that name. Raises HarnessError where it cannot be read."""
    done = git.call("-C", tree, "show", f"{commit}:{path}", timeout=60, check=False)
    if not done.status:
        return done.output
    there = git.call("-C", tree, "--literal-pathspecs", "ls-tree", commit, "--", path, timeout=60, check=False)
    if there.status or there.output.strip():
        raise HarnessError(f"{tree}: {path} of {commit[:12]} cannot be read: {done.output.strip()[-200:]}")
    return ""


def parameters_in(source: str) -> list[Declared]:
    """The module parameters that a C source declares, in order, each once."""
    found: dict[str, Declared] = {}
    for match in _PARAMETER.finditer(_COMMENT.sub(" ", source)):
        words = [word.strip() for word in match["arguments"].split(",")]
        at = _TYPE_AT.get(match["macro"])
        kind = words[at].removeprefix("&") if at is not None and at < len(words) else "string"
        if "array" in match["macro"]:
            kind = f"array of {kind}"
        # A macro that makes parameters of its own arguments has no name to give.
        if all(re.fullmatch(r"\w+( \w+)*", one) for one in (words[0], kind)):
            found.setdefault(words[0], Declared(words[0], kind))
    return [*found.values()]


def modules_of_objects(objects: Path) -> dict[str, str]:
    """Source files, without suffix, to the module that Kbuild made of them, from an object folder's `.mod` files."""
    found: dict[str, str] = {}
    for path in sorted((*objects.glob("arch/x86/kvm/*.mod"), *objects.glob("virt/**/*.mod"))):
        for line in path.read_text("utf-8", "replace").split():
            if line.endswith(".o"):
                found[posixpath.normpath(line).removesuffix(".o")] = path.stem
    return found


def areas_of(files: Sequence[str], areas: Sequence[BarArea]) -> Iterator[Area]:
    """The areas in which some of the files are; each file is in the first that has it."""
    left = list(files)
    for area in areas:
        inside = [one for one in left if any(fnmatch.fnmatchcase(one, glob) for glob in area.paths)]
        left = [one for one in left if one not in inside]
        if inside:
            yield Area(area.name, tuple(inside), area.orders, area.must)


def touched(settings: BarSettings, tree: str, base: str, tip: str) -> Touched:
    """All that can be told before anything is built; of parameters see `with_parameters`."""
    files = changed_files(tree, base, tip)
    return Touched(
        files=files,
        areas=tuple(areas_of(files, settings.area)),
        docs=tuple(one for one in files if one.startswith("Documentation/") and one.endswith(".rst")),
        tests=tuple(one for one in changed_files(tree, base, tip, "--diff-filter=d") if one.startswith(f"{TESTS}/")),
    )


def with_parameters(
    settings: BarSettings,
    sources: Mapping[str, tuple[str, str]],
    modules: Mapping[str, str],
    there: Mapping[str, Mapping[str, str | None]],
) -> tuple[Parameter, ...]:
    """The parameters that the touched files define, before the series or behind it.

    `sources`: of each file its text in the base and in the last patch; `modules` as from `modules_of_objects`;
    `there`: of each module of the last patch's kernel its parameters, with the types that it says, if it does.
    """
    found: list[Parameter] = []
    for file, (before, after) in sources.items():
        module = modules.get(file.rpartition(".")[0], "")
        now = {one.name: one for one in parameters_in(after)}
        for one in {**{one.name: one for one in parameters_in(before)}, **now}.values():
            parameter = Parameter(module, one.name, one.kind, file, gone=one.name not in now)
            if parameter.gone or not module:
                found.append(parameter)
            elif one.name not in there.get(module, {}):
                found.append(msgspec.structs.replace(parameter, absent=True))
            else:
                # Operations of its own may have a type, too (__MODULE_PARM_TYPE).
                kind = there[module][one.name] or one.kind
                values = settings.values.get(parameter.full, ON_AND_OFF if kind in SWITCHES else ())
                found.append(msgspec.structs.replace(parameter, kind=kind, values=tuple(values)))
    return tuple(found)


def code_files(settings: BarSettings, files: Sequence[str]) -> tuple[str, ...]:
    """Those in which parameters are looked for."""
    return tuple(
        one for one in files if one.endswith(".c") and any(fnmatch.fnmatchcase(one, glob) for glob in settings.code)
    )


def parameter_order(parameters: Sequence[Parameter]) -> str | None:
    """A load order that gives each pair of their values, as a file has it; None where there are no values to give."""
    tables: dict[str, dict[str, tuple[str | int, ...]]] = {}
    for one in parameters:
        if one.values:
            tables.setdefault(one.module, {})[one.name] = one.values
    if not tables:
        return None
    lines = [
        'id = "touched-parameters"',
        'title = "Each pair of settings of what the touched files define loads, runs a guest and leaves nothing"',
        'modules = ["{vendor}"]',
        'needs = ["vmx|svm"]',
        'cover = "pairs"',
    ]
    for module, values in tables.items():
        cpu = {"kvm-intel": "intel", "kvm-amd": "amd"}.get(module)
        named = ", ".join(f"{name} = [{', '.join(map(_toml, some))}]" for name, some in values.items())
        lines += ["", "[[matrix]]", f'module = "{module}"', f"params = {{ {named} }}"]
        lines += [f'when = {{ cpu = "{cpu}" }}'] if cpu else []
    for step in ('load = "{vendor}"', 'smoke = ["long-mode"]', 'unload = "{vendor}"', 'check = "footprint"'):
        lines += ["", "[[step]]", step]
    return "\n".join(lines) + "\n"


def _toml(value: str | int) -> str:
    return str(value) if isinstance(value, int) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
