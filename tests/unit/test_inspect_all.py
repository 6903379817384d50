"""Protects `scripts/inspect-all`: each module is asked, and what stumbles is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from kbuild.paths import PROJECT
from tests.unit.test_corpus import compiled


def test_each_module_of_a_folder_is_asked(tmp_path: Path) -> None:
    folder, rows, rules = tmp_path / "modules", tmp_path / "rows", tmp_path / "rules.toml"
    folder.mkdir()
    compiled("gcc -O2", folder / "flow.ko")
    shutil.copy(folder / "flow.ko", folder / "cut.ko")
    (folder / "cut.ko").write_bytes((folder / "flow.ko").read_bytes()[:5000])
    rules.write_text('[[order]]\nid = "x"\nfirst = { call = "first" }\nthen = { call = "then" }\n')
    argv: list[str | Path] = [
        sys.executable,
        PROJECT / "scripts/inspect-all",
        folder,
        "--rules",
        rules,
        "--json",
        rows,
        "--jobs",
        "1",
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    found = {row["module"]: row for row in map(json.loads, rows.read_text().splitlines())}
    assert found.keys() == {"flow", "cut"}
    assert found["flow"]["trouble"] is None, done.stderr
    assert found["flow"]["code"] > 1000
    assert found["flow"]["seconds"].keys() == {"inspect", "layout", "rules and calls", "hazards"}
    assert "cut off or broken" in found["cut"]["trouble"]
    assert done.returncode == 1
    assert "2 modules, 1 in trouble" in done.stdout
