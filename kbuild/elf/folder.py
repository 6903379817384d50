"""The modules of a folder, inspected: what `inv inspect` prints. Nothing else of the tool is loaded for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kbuild import log
from kbuild.elf.differences import compare
from kbuild.elf.inspect import find_modules, inspect, to_json
from kbuild.elf.kernel import read_kernel
from kbuild.elf.rules.spec import read_rules
from kbuild.errors import UserError
from kbuild.profile import resolve_reference


def inspect_folder(
    modules: str,
    kernel: str | None,
    rules: Sequence[str] = (),
    against: str | None = None,
    *,
    hazards: bool = False,
    layout: bool = True,
) -> dict[str, Any]:
    """What `inspect --json` prints, for the module files of a folder and, if given, their kernel's bzImage.

    `rules`: rule files, by path or by a name in `profiles/rules/`; `hazards`: what init writes after it was read;
    `against`: a folder of modules as they were before, asked the same; `layout`: with what is in each module's code.
    Raises UserError for what is not there.
    """
    log.configure()
    asked = None
    if rules:
        files = {name: resolve_reference("rules", name, Path.cwd()) for name in rules}
        if missing := [name for name, file in files.items() if file is None]:
            raise UserError(f"--rules {missing[0]}: no such file, here or in profiles/rules/")
        asked = read_rules(tuple(file for file in files.values() if file is not None))
    image = read_kernel(bzimage=Path(kernel).expanduser()) if kernel else None
    paths = find_modules(Path(modules).expanduser())
    after = inspect(paths, image, asked)
    data = to_json(after, layout=layout)
    if hazards:
        from kbuild.elf.hazards.find import differences, find_hazards

        data["hazards"] = find_hazards(after.modules)
    if against is not None:
        before = inspect(find_modules(Path(against).expanduser()), None, asked)
        # Without the kernel: what it says of modules that are not of its build is no difference between the builds.
        data["differences"] = compare(before, after if image is None else inspect(paths, None, asked))
        if hazards:
            was, now = find_hazards(before.modules)["found"], data["hazards"]["found"]
            data["differences"]["hazards"] = differences(was, now)
    return data
