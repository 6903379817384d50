"""The modules of a folder, inspected: what `inv inspect` prints. Nothing else of the tool is loaded for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbuild.elf.inspect import find_modules, inspect, to_json
from kbuild.elf.kernel import read_kernel
from kbuild.elf.rules.spec import Rules, read_rules
from kbuild.errors import UserError
from kbuild.profile import resolve_reference


@dataclass(frozen=True)
class Wanted:
    """What is asked of the modules of a folder, besides what always is."""

    rules: tuple[str, ...] = ()
    """Rule files, by path or by a name in `profiles/rules/`."""
    against: str | None = None
    """A folder of modules as they were before, which are asked the same."""
    hazards: bool = False
    """What init writes after it was read."""
    layout: bool = True
    """What is in each module's code."""
    structs: tuple[str, ...] = ()
    """Names of those to describe."""
    flow: bool = False
    """What the init and exit of each module call."""


def inspect_folder(
    modules: str, kernel: str | None, wanted: Wanted, meanwhile: Callable[[], object] | None = None
) -> dict[str, Any]:
    """What `inspect --json` prints, for the module files of a folder and, if given, their kernel's bzImage.

    `meanwhile` is done while other processes look for answers, if any do. Raises UserError for what is not there.
    """
    asked = _rules(wanted.rules)
    image = read_kernel(bzimage=Path(kernel).expanduser()) if kernel else None
    paths = find_modules(Path(modules).expanduser())
    flow = wanted.flow or wanted.against is not None
    after = inspect(paths, image, asked, flow=flow, meanwhile=meanwhile)
    data = to_json(after, layout=wanted.layout, structs=wanted.structs)
    if wanted.hazards:
        from kbuild.elf.hazards.find import find_hazards
        from kbuild.elf.rules.check import followed

        data["hazards"] = find_hazards(followed(after.modules, asked or Rules()))
    if wanted.against is not None:
        from kbuild.elf.differences import compare

        before = inspect(find_modules(Path(wanted.against).expanduser()), None, asked, flow=flow)
        # Without the kernel: what it says of modules that are not of its build is no difference between the builds.
        data["differences"] = compare(before, after if image is None else inspect(paths, None, asked, flow=flow))
        if wanted.hazards:
            from kbuild.elf.hazards.find import differences

            was = find_hazards(followed(before.modules, asked or Rules()))
            data["differences"]["hazards"] = differences(was["found"], data["hazards"]["found"])
    return data


def _rules(names: Sequence[str]) -> Rules | None:
    if not names:
        return None
    files = {name: resolve_reference("rules", name, Path.cwd()) for name in names}
    if missing := [name for name, file in files.items() if file is None]:
        raise UserError(f"--rules {missing[0]}: no such file, here or in profiles/rules/")
    return read_rules(tuple(file for file in files.values() if file is not None))
