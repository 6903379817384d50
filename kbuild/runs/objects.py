"""What differs between the modules that two runs keep: as `inspect --against` says it, and the sizes of slab caches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kbuild.build.artifacts import file_digest
from kbuild.elf.differences import compare
from kbuild.elf.image import file_module_name
from kbuild.elf.inspect import Inspection, inspect
from kbuild.elf.tree.data import flow_json
from kbuild.errors import KbuildError
from kbuild.record import Record

_CREATES_CACHE = ("kmem_cache_create", "kmem_cache_create_usercopy", "__kmem_cache_create_args")
"""include/linux/slab.h: of all of them the first argument is the cache's name, the second the size of its objects."""


def inspect_kept(folder: Path, record: Record) -> Inspection:
    """The modules that a run keeps, with their flow. Raises KbuildError where they are not what was judged."""
    return inspect([*_kept(folder, module_files(record))], flow=True)


def compare_objects(
    folders: Sequence[Path],
    records: Sequence[Record],
    look: Callable[[Path, Record], Inspection] = inspect_kept,
) -> dict[str, Any]:
    """`modules` (None: the same bytes, or `modules_problem` says why they cannot be compared), `flow` and `caches`.

    `look` gives what is in a run's modules, for who has it already.
    """
    old, new = map(module_files, records)
    nothing: dict[str, Any] = {"modules": None, "flow": [], "caches": [], "modules_problem": None}
    if old == new:
        return {**nothing, "modules_same": bool(new)}
    try:
        before, after = map(look, folders, records)
        found = compare(before, after)
        caches = _caches(before, after)
    except KbuildError as error:
        return {**nothing, "modules_same": False, "modules_problem": str(error)}
    return {**nothing, "modules_same": False, "modules": found["modules"], "flow": found["flow"], "caches": caches}


def module_files(record: Record) -> dict[str, str]:
    """Of the artifacts those that are modules: file name to SHA-256."""
    return {name: digest for name, digest in record.artifacts.items() if file_module_name(Path(name)) is not None}


def _kept(folder: Path, modules: Mapping[str, str]) -> Iterator[Path]:
    """The files, which must be the bytes that were judged."""
    for name, digest in modules.items():
        path = folder / "artifacts" / name
        if file_digest(path) != digest:
            raise KbuildError(f"{path}: is no longer what was judged")
        yield path


def _caches(before: Inspection, after: Inspection) -> list[dict[str, Any]]:
    old, new = (dict(_sizes(flow_json(side.trees or ()))) for side in (before, after))
    return [
        {"module": key[0], "cache": key[1], "before": old.get(key), "after": new.get(key)}
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _sizes(calls: Iterable[Mapping[str, Any]], entry: str = "") -> Iterator[tuple[tuple[str, str], list[int]]]:
    """The sizes that a cache may get, in bytes, by the module whose init leads there and the cache's name."""
    for one in calls:
        module = entry or one["module"]
        if one["function"] in _CREATES_CACHE and len(one.get("arguments", ())) > 1:
            names, sizes = one["arguments"][:2]
            for name in names:
                if "string" in name:
                    yield (module, name["string"]), sorted(size["number"] for size in sizes if "number" in size)
        yield from _sizes(one["calls"], module)
