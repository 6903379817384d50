"""What a page shows of a run's modules besides the record: init flow and layout, looked at when a page is asked for.

It is made of the files that the run keeps, and kept with them: no gate that nobody wants a page of waits for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbuild.elf.folder import Wanted, inspect_folder
from kbuild.errors import UserError
from kbuild.outcome import to_json
from kbuild.paths import write_atomically
from kbuild.profile import read_profile, reference
from kbuild.record import Record

FILE = "code.json"
"""In the run's folder."""
MAX_BYTES = 16 << 20
"""Of what is kept: a tree that is larger is left out, and the file says so."""


def look_closer(folder: Path, record: Record) -> None:
    """Write the file, unless it is there or there are no modules. What keeps it from being made is written, too."""
    artifacts = folder / "artifacts"
    kernel = next((artifacts / name for name in record.artifacts if name.startswith(("bzImage", "vmlinuz"))), None)
    if (folder / FILE).exists() or not any(".ko" in name for name in record.artifacts):
        return
    data = to_json(_look(artifacts, kernel, record))
    if len(data) > MAX_BYTES:
        data = to_json({"modules": [], "flow": None, "why": f"the trees would have {len(data)} bytes"})
    write_atomically(folder / FILE, data)


def _look(artifacts: Path, kernel: Path | None, record: Record) -> dict[str, Any]:
    try:
        rules = tuple(record.rule_files) or _rules_of(record)
        found = inspect_folder(str(artifacts), str(kernel) if kernel else None, Wanted(rules=rules, flow=True))
    except UserError as error:
        return {"modules": [], "flow": None, "why": str(error)}
    modules = [{"name": one["name"], "sections": _sections(one), **one["layout"]} for one in found["modules"]]
    return {"modules": modules, "flow": found["flow"], "why": None}


def _sections(module: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that take memory when the module is loaded."""
    kept = (one for one in module["sections"] if "A" in one.flags and one.size)
    return [{"name": one.name, "size": one.size, "part": one.part, "flags": one.flags} for one in kept]


def _rules_of(record: Record) -> tuple[str, ...]:
    """Of a record that does not say: those that its profile names today."""
    if record.profile is None:
        return ()
    return tuple(reference("rules", path) for path in read_profile(record.profile, record.flavour).rules)
