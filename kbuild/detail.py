"""What a page shows of a run's modules besides the record: init flow and layout, looked at when a page is asked for.

It is made of the files that the run keeps, and kept with them: no gate that nobody wants a page of waits for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from kbuild.elf.folder import Wanted, inspect_folder
from kbuild.elf.tree.sides import flow_beside
from kbuild.errors import HarnessError, UserError
from kbuild.outcome import to_json
from kbuild.paths import write_atomically
from kbuild.profile import read_profile, reference
from kbuild.record import Record
from kbuild.setting import FOLDER as PROFILE

FILE = "code.json"
"""In the run's folder."""
MAX_BYTES = 16 << 20
"""Of what is kept: a tree that is larger is left out, and the file says so."""


def look_closer(folder: Path, record: Record) -> None:
    """Write the file, unless it is there or there are no modules. What keeps it from being made is written, too.

    A folder that cannot be written is left as it is: the page says what it lacks.
    """
    if not any(".ko" in name for name in record.artifacts) or _is_there(folder / FILE):
        return
    artifacts = folder / "artifacts"
    kernel = artifacts / record.kernel_file if record.kernel_file else None
    data = to_json(_look(artifacts, kernel, _rules(folder, record)))
    if len(data) > MAX_BYTES:
        data = to_json({"modules": [], "flow": None, "why": f"the trees would have {len(data)} bytes"})
    with contextlib.suppress(HarnessError):
        write_atomically(folder / FILE, data)


def look_at_both(before: tuple[Path, Record], after: tuple[Path, Record], rules: Iterable[str] = ()) -> dict[str, Any]:
    """The init flow of two runs beside each other, `flow` (`kbuild.elf.tree.sides`); null where one has none: `why`.

    `rules`: those whose events are shown in any case.
    """
    for folder, record in (before, after):
        look_closer(folder, record)
    old, new = (_read(folder / FILE) for folder, _ in (before, after))
    if old is None or new is None or not old["flow"] or not new["flow"]:
        why = next((str(one["why"]) for one in (old, new) if one and one["why"]), "not both runs keep their modules")
        return {"flow": None, "why": why}
    return {"flow": flow_beside(old["flow"], new["flow"], rules), "why": None}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None


def _is_there(path: Path) -> bool:
    """What was kept from being made once may be possible now."""
    try:
        return bool(msgspec.json.decode(path.read_bytes())["why"] is None)
    except (OSError, msgspec.DecodeError, TypeError, KeyError):
        return False


def _look(artifacts: Path, kernel: Path | None, rules: tuple[str, ...]) -> dict[str, Any]:
    try:
        found = inspect_folder(str(artifacts), str(kernel) if kernel else None, Wanted(rules=rules, flow=True))
    except UserError as error:
        return {"modules": [], "flow": None, "why": str(error)}
    modules = [{"name": one["name"], "sections": _sections(one), **one["layout"]} for one in found["modules"]]
    return {"modules": modules, "flow": found["flow"], "why": None}


def _sections(module: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that take memory when the module is loaded."""
    kept = (one for one in module["sections"] if "A" in one.flags and one.size)
    return [{"name": one.name, "size": one.size, "part": one.part, "flags": one.flags} for one in kept]


def _rules(folder: Path, record: Record) -> tuple[str, ...]:
    """The rule files as they were read for the run; of one that kept none, those that its profile names today."""
    kept = [folder / PROFILE / name for name in record.profile_files if name.startswith("rules/")]
    if record.profile_files or record.profile is None:
        return tuple(str(path) for path in kept if path.is_file())
    try:
        return tuple(reference("rules", path) for path in read_profile(record.profile, record.flavour).rules)
    except UserError:
        return ()
