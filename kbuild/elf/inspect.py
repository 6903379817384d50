"""Inspect a set of module files: images, findings, a verdict, and all of it as JSON.

A finding is FAIL when the module loader of that kernel would refuse a module of this set (kernel/module/main.c and
version.c, 6.1), or when a module refers to init memory that is gone (lifetimes.py), ERROR when the set as it is cannot
be judged, DONE when it only informs. docs/inspect.md lists them.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbuild.elf.exports import Export
from kbuild.elf.findings import new_finding
from kbuild.elf.image import SUFFIXES, ModuleImage, file_module_name, module_key, read_module
from kbuild.elf.kernel import KernelImage
from kbuild.elf.layout import layout_of, part_sizes
from kbuild.elf.lifetimes import lifetimes
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules.counts import Scope, counts, scope
from kbuild.elf.rules.spec import Rules
from kbuild.elf.types import Types
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, verdict

if TYPE_CHECKING:
    from kbuild.elf.tree.model import Tree

MAX_KEPT = 32
"""Files whose bytes are kept until all is said; of more, those are read again that something is asked of."""


@dataclass(frozen=True)
class Inspection:
    """What came out. With other `findings` (some marked as known), `dataclasses.replace` gives the new verdict too."""

    modules: ModuleSet
    findings: tuple[Finding, ...]
    trees: tuple[Tree, ...] | None = None
    """What init and exit call; None: nobody asked."""
    scope: Scope | None = None
    """Which rules were asked; None: none were to be."""

    @property
    def rules(self) -> dict[str, Any] | None:
        """How many rules were asked, and what came out (`counts`)."""
        return None if self.scope is None else counts(self.scope, self.findings)

    @property
    def verdict(self) -> Status:
        """The worst finding that counts, else PASS; DONE when there was nothing to hold the files against."""
        kernel = self.modules.kernel
        known = kernel is not None and (kernel.exports is not None or kernel.release is not None)
        judged = known or len(self.modules.modules) > 1
        return verdict(self.findings, [Status.PASS if judged else Status.DONE])


def find_modules(folder: Path) -> list[Path]:
    """All module files in a folder and below it, sorted. Links to folders are not followed.

    Raises UserError when there is no such folder, when it has no modules, and when it has the same one twice.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder")
    found: dict[str, Path] = {}
    for root, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = Path(root, file)
            name = file_module_name(path)
            if name is None:
                continue
            other = found.setdefault(module_key(name), path)
            if other is not path:
                raise UserError(f"the module {name} is there twice: {other} and {path}; remove one")
    if not found:
        raise UserError(f"{folder}: has no modules, here or below: no file that ends in {', '.join(SUFFIXES)}")
    return sorted(found.values())


def with_dependencies(paths: Sequence[Path], names: Collection[str]) -> list[Path]:
    """Of many module files (all that a distribution ships) these and what `depends` says that they need, sorted.

    Only the files that are taken are read. A dependency that has no file is left out; `inspect` says it. Raises
    UserError when one of `names` has no file, and when one that is taken cannot be read.
    """
    by_key = {module_key(name): path for path in paths if (name := file_module_name(path)) is not None}
    if missing := sorted(name for name in names if module_key(name) not in by_key):
        raise UserError(f"there is no file for the module {', '.join(missing)} among {len(paths)} module files")
    taken: set[str] = set()
    waiting = [module_key(name) for name in names]
    while waiting:
        key = waiting.pop()
        if key in by_key and key not in taken:
            taken.add(key)
            waiting += map(module_key, read_module(by_key[key]).depends)
    return sorted(by_key[key] for key in taken)


def inspect(
    paths: Sequence[Path],
    kernel: KernelImage | None = None,
    rules: Rules | None = None,
    *,
    flow: bool = False,
    meanwhile: Callable[[], object] | None = None,
) -> Inspection:
    """Read the module files, and inspect them as `inspect_set` does.

    Raises UserError for a file that is no module, and for the same module twice.
    """
    if not paths:
        raise UserError("no modules to inspect")
    keep = len(paths) <= MAX_KEPT
    modules = ModuleSet.of((read_module(path, keep=keep) for path in paths), kernel)
    return inspect_set(modules, rules, flow=flow, meanwhile=meanwhile)


def inspect_set(
    modules: ModuleSet,
    rules: Rules | None = None,
    *,
    flow: bool = False,
    meanwhile: Callable[[], object] | None = None,
) -> Inspection:
    """Say what is wrong with the modules, with each other, and with their kernel; answer `rules`.

    `flow`: follow the init and exit of each module, and give their calls as trees. `meanwhile`: see `check_rules`.
    Raises UserError for a module that is damaged.
    """
    findings = tuple(finding for check in CHECKS for finding in check(modules))
    trees: list[Tree] = []
    if rules is not None or flow:
        from kbuild.elf.rules.check import check_rules

        answers, trees = check_rules(modules, rules or Rules(), flow=flow, meanwhile=meanwhile)
        findings += tuple(answers)
    if rules is not None and rules.resources:
        from kbuild.elf.resources.find import find_resources

        findings += tuple(find_resources(modules, rules.resources, rules.vendor.leaves))
    asked = None if rules is None else scope(modules, rules)
    return Inspection(modules, findings, tuple(trees) if flow else None, asked)


def _unresolved_imports(modules: ModuleSet) -> Iterator[Finding]:
    """`Unknown symbol %s (err -2)`: simplify_symbols(). Weak symbols may stay unresolved."""
    for module in modules.modules.values():
        for wanted, provider in modules.providers(module):
            if provider.by != "nobody" or wanted.weak:
                continue
            hint = f"; {provider.name} should, which is not among the modules" if provider.name else ""
            text = f"{module.name} imports {wanted.name}, which neither the kernel nor any of the modules exports{hint}"
            yield new_finding("unresolved-import", Status.FAIL, module.name, wanted.name, text, ())


def _missing_dependencies(modules: ModuleSet) -> Iterator[Finding]:
    """Only where the kernel's exports are not at hand: else each import that is then nobody's has its own finding."""
    if modules.kernel is not None and modules.kernel.exports is not None:
        return
    for module in modules.modules.values():
        for name in modules.missing_dependencies(module):
            text = f"{module.name} depends on {name}, which is not among the modules: add it, or this is not judged"
            yield new_finding("missing-dependency", Status.ERROR, module.name, name, text, ())


def _vermagic(modules: ModuleSet) -> Iterator[Finding]:
    """`version magic '%s' should be '%s'`: same_magic(), which ignores the release of a module that has CRCs."""
    for module in modules.modules.values():
        if module.vermagic is None:
            text = f"{module.name} has no vermagic: the kernel does not load it"
            yield new_finding("vermagic", Status.FAIL, module.name, "missing", text, ())
            continue
        kernel = modules.kernel
        wanted = (kernel.vermagic or kernel.release) if kernel else None
        if kernel is None or wanted is None:
            continue
        have = module.vermagic if kernel.vermagic else module.vermagic.partition(" ")[0]
        if have == wanted:
            continue
        text = f"{module.name} has vermagic '{module.vermagic}', the kernel '{wanted}'"
        if module.has_crcs and have.partition(" ")[2] == wanted.partition(" ")[2]:
            text += ": it loads where all CRCs agree, but it is not of this build"
            yield new_finding("vermagic", Status.ERROR, module.name, "release", text, ())
        else:
            yield new_finding("vermagic", Status.FAIL, module.name, "differs", f"{text}: it does not load", ())


_SAME_IN_ONE_BUILD: tuple[tuple[str, str, Callable[[ModuleImage], str | None]], ...] = (
    ("vermagic", "vermagic", lambda module: module.vermagic),
    ("module-layout", "CRC of module_layout", lambda module: _hex(module.module_layout_crc)),
    ("struct-module", "size of struct module", lambda module: f"{module.struct_module_size} bytes"),
)


def _mixed_builds(modules: ModuleSet) -> Iterator[Finding]:
    """What is one for all modules of a build, and is not one here: no kernel can take all of them."""
    for cause, what, value_of in _SAME_IN_ONE_BUILD:
        groups: dict[str, list[str]] = collections.defaultdict(list)
        for module in modules.modules.values():
            groups[value_of(module) or "none"].append(module.name)
        if len(groups) > 1:
            lines = [f"{', '.join(names)}: {value}" for value, names in sorted(groups.items())]
            text = f"the modules are of different builds: their {what} differs"
            status = Status.ERROR if cause == "vermagic" and _only_release_differs(modules) else Status.FAIL
            yield new_finding("mixed-builds", status, None, cause, text, lines)


def _only_release_differs(modules: ModuleSet) -> bool:
    """Then same_magic() accepts all of them, for they have CRCs."""
    words = {(module.vermagic or "").partition(" ")[2] for module in modules.modules.values()}
    return len(words) == 1 and all(module.has_crcs for module in modules.modules.values())


def _crcs(modules: ModuleSet) -> Iterator[Finding]:
    """`disagrees about version of symbol %s`, `no symbol version for %s`: check_version()."""
    layout = (modules.kernel.exports or {}).get("module_layout") if modules.kernel else None
    for module in modules.modules.values():
        wrong: dict[str, list[str]] = collections.defaultdict(list)
        wanted: list[tuple[str, int | None, str, Export]] = [
            (used.name, used.crc, provider.name or "kernel", provider.export)
            for used, provider in modules.providers(module)
            if provider.export is not None
        ]
        if layout is not None:
            wanted.append(("module_layout", module.module_layout_crc, "kernel", layout))
        for name, crc, provider_name, export in wanted:
            if export.crc is not None and export.crc != crc:
                wrong[provider_name].append(f"{name}: built against {_hex(crc) or 'none'}, exported {_hex(export.crc)}")
        for provider_name, lines in wrong.items():
            text = f"{module.name} was built against another {provider_name}: {len(lines)} CRCs differ"
            yield new_finding("crc-mismatch", Status.FAIL, module.name, provider_name, text, lines)


def _namespaces(modules: ModuleSet) -> Iterator[Finding]:
    """`uses symbol (%s) from namespace %s, but does not import it`: verify_namespace_is_imported()."""
    for module in modules.modules.values():
        missing: dict[str, list[str]] = collections.defaultdict(list)
        for used, provider in modules.providers(module):
            namespace = provider.export.namespace if provider.export else None
            if namespace and not _may_use(module, namespace):
                missing[namespace].append(f"{used.name}, of {provider.name or 'the kernel'}")
        for namespace, lines in missing.items():
            text = f"{module.name} uses {len(lines)} symbols of the namespace {namespace}, which it does not import"
            yield new_finding("namespace", Status.FAIL, module.name, namespace, text, lines)


def _may_use(module: ModuleImage, namespace: str) -> bool:
    """`module:a,b*` is for in-tree modules of these names: verify_module_namespace(), in kernels newer than 6.12."""
    names = namespace.removeprefix("module:")
    if names == namespace:
        return namespace in module.import_namespaces
    name = module_key(module.name)
    patterns = [module_key(pattern) for pattern in names.split(",")]
    return module.in_tree and any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )


def _duplicate_exports(modules: ModuleSet) -> Iterator[Finding]:
    """`exports duplicate symbol %s (owned by %s)`: verify_exported_symbols()."""
    kernel = (modules.kernel.exports or {}) if modules.kernel else {}
    for name, exporters in sorted(modules.exporters.items()):
        owners = [*(["the kernel"] if name in kernel else []), *(module.name for module, _ in exporters)]
        if len(owners) > 1:
            text = f"{name} is exported by {' and by '.join(owners)}: only the first of them loads"
            yield new_finding("duplicate-export", Status.FAIL, exporters[-1][0].name, name, text, ())


def _not_known(modules: ModuleSet) -> Iterator[Finding]:
    """What could not be looked at, said once."""
    kernel = modules.kernel
    if kernel is None or kernel.exports is None:
        every = [provider for module in modules.modules.values() for _, provider in modules.providers(module)]
        open_imports = sum(provider.by == "unknown" for provider in every)
        text = (
            f"{open_imports} of {len(every)} imports come from the kernel or from nobody: its exports are not at hand"
            " (give its bzImage, or the Module.symvers of its build)"
        )
        yield new_finding("not-known", Status.DONE, None, "kernel-exports", text, kernel.unknown if kernel else ())
    elif kernel.vermagic is None:
        release = f", only its release {kernel.release}" if kernel.release else ""
        text = f"the kernel's vermagic is not at hand{release} (give its bzImage or vmlinux)"
        yield new_finding("not-known", Status.DONE, None, "kernel-vermagic", text, kernel.unknown)


CHECKS: tuple[Callable[[ModuleSet], Iterator[Finding]], ...] = (
    _unresolved_imports,
    _missing_dependencies,
    _vermagic,
    _mixed_builds,
    _crcs,
    _namespaces,
    _duplicate_exports,
    lifetimes,
    _not_known,
)


def to_json(inspection: Inspection, *, layout: bool = True, structs: Sequence[str] = ()) -> dict[str, Any]:
    """The inspection as data for `kbuild.outcome.to_json`; docs/inspect.md describes the keys.

    `layout`: with what each module's code is made of, for which it is looked at; `structs`: names of those to describe.
    Raises UserError where that finds that a file contradicts itself.
    """
    import msgspec

    types = Types(inspection.modules.kernel)
    described = [
        _module_json(inspection.modules, module, layout)
        | {"structs": [msgspec.to_builtins(types.struct(module, name)) for name in structs]}
        for module in inspection.modules.modules.values()
    ]
    return {
        "verdict": inspection.verdict,
        "kernel": _kernel_json(inspection.modules.kernel),
        "modules": described,
        "findings": [
            {
                "id": finding.id,
                "rule": finding.rule,
                "module": finding.module,
                "status": finding.status,
                "answer": finding.answer,
                "known": finding.known,
                "message": finding.message,
                "witness": finding.witness or finding.evidence,
            }
            for finding in inspection.findings
        ],
        "rules": inspection.rules,
        "flow": _flow_json(inspection.trees),
    }


def _flow_json(trees: Sequence[Tree] | None) -> list[dict[str, Any]] | None:
    if trees is None:
        return None
    from kbuild.elf.tree.data import flow_json

    return flow_json(trees)


def _kernel_json(kernel: KernelImage | None) -> dict[str, Any] | None:
    if kernel is None:
        return None
    return {
        "release": kernel.release,
        "vermagic": kernel.vermagic,
        "exports": None if kernel.exports is None else len(kernel.exports),
        "sources": kernel.sources,
        "unknown": kernel.unknown,
    }


def _module_json(modules: ModuleSet, module: ModuleImage, layout: bool) -> dict[str, Any]:
    import msgspec

    data: dict[str, Any] = msgspec.structs.asdict(module)
    names = {section.index: section.name for section in module.sections}
    del data["init_references"], data["init_pointers"]  # The findings say it, by names.
    data["path"] = str(module.path)
    data["traits"] = module.traits
    data["modinfo"] = [{"tag": tag, "value": value} for tag, value in module.modinfo]
    sizes = part_sizes(module)
    data["bytes"] = {part: sizes[part] for part in ("text", "data", "init", "exit")}
    data["symbols"] = [
        {**msgspec.structs.asdict(symbol), "section": names.get(symbol.section) if symbol.section else None}
        for symbol in module.symbols
    ]
    data["imports"] = [
        {**msgspec.structs.asdict(used), "by": provider.by, "provider": provider.name or _kernel_or_none(provider.by)}
        for used, provider in modules.providers(module)
    ]
    if layout:
        data["layout"] = msgspec.to_builtins(layout_of(module))
    data["missing_dependencies"] = modules.missing_dependencies(module)
    data["dependencies"] = modules.dependencies(module)
    return data


def _kernel_or_none(by: str) -> str | None:
    return "kernel" if by == "kernel" else None


def _hex(crc: int | None) -> str | None:
    return None if crc is None else f"{crc:#010x}"
