"""`make htmldocs` of the folders whose .rst files a series changes, with the base and with the last patch."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kbuild import command
from kbuild.barrecord import Docs, shown
from kbuild.configure import git
from kbuild.configure.tree import Tree, open_tree
from kbuild.errors import HarnessError
from kbuild.paths import make_folder

SPHINX = "sphinx-build"
SECONDS = 1800
_LABEL = re.compile(r"undefined label: '?(?P<label>[^'(]+?)'?(?: \(|$)")
_DOCUMENT = re.compile(r"unknown document: '?(?P<name>[^'\s]+)'?")
_WARNING = re.compile(r"\b(?:WARNING|ERROR|SEVERE|warning):")


def check_docs(tree: str, base: str, tip: str, files: Sequence[str], folder: Path) -> Docs:
    """Make the folders' pages twice and say which warnings are new. `folder` gets logs and pages."""
    result = Docs(folders=made_folders(tree, (base, tip), files))
    if shutil.which(SPHINX) is None:
        result.reason = f"{SPHINX} is not installed: apt-get install python3-sphinx"
        return result
    result.sphinx = command.run([SPHINX, "--version"]).output.partition("\n")[0].strip()
    said: list[list[str]] = []
    for name, commit in (("base", base), ("tip", tip)):
        try:
            with open_tree(tree, commit) as opened:
                # Of pages that lie there from an interrupted one sphinx would not say the warnings again.
                shutil.rmtree(folder / name, ignore_errors=True)
                said.append(_make(opened, result.folders, make_folder(folder / name)))
        except HarnessError as error:
            result.reason = f"{name}: {error}"
            return result
    result.before, after = said
    result.new = new_warnings(result.before, after)
    return result


def folders_of(files: Sequence[str]) -> tuple[str, ...]:
    """The folders below Documentation/, as SPHINXDIRS takes them; of one inside another the outer one."""
    folders = sorted({file.removeprefix("Documentation/").rpartition("/")[0] for file in files})
    return tuple(
        one for one in folders if not any(one != other and other and one.startswith(f"{other}/") for other in folders)
    )


def made_folders(tree: str, commits: Sequence[str], files: Sequence[str]) -> tuple[str, ...]:
    """The folders of the files; of one that not each of the commits has the nearest above it that each has.

    What refers to a page that was deleted with its folder, or does not refer to a new one, stands there.
    """
    found = set()
    for folder in folders_of(files):
        while folder and not all(_has_folder(tree, commit, folder) for commit in commits):
            folder = folder.rpartition("/")[0]
        found.add(folder)
    return ("",) if "" in found else folders_of([f"Documentation/{one}/x" for one in found])


def _has_folder(tree: str, commit: str, folder: str) -> bool:
    asked = f"{commit}:Documentation/{folder}"
    done = git.call("-C", tree, "cat-file", "-t", asked, check=False, env={"LC_ALL": "C"})
    return done.status == 0 and done.output.strip() == "tree"


def _make(tree: Tree, folders: Sequence[str], output: Path) -> list[str]:
    # A file right below Documentation/ has no folder of its own: then all of it is made.
    chosen = [f"SPHINXDIRS={' '.join(folders)}"] if all(folders) else []
    argv = ["make", "-C", str(tree.source), f"O={output}", *chosen, "htmldocs"]
    log_file = output / "htmldocs.log"
    lines: list[str] = []
    # Not ours alone: a make above us would hand its options down.
    settings = {"MAKEFLAGS": "", "LC_ALL": "C.UTF-8"}
    done = command.run(
        argv,
        env=settings,
        timeout=SECONDS,
        on_line=lines.append,
        log_file=log_file,
        check=False,
    )
    if done.status:
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise HarnessError(f"make htmldocs ended with status {done.status}: {last}; see {log_file}")
    found = warnings_in(lines, tree.source)
    return [one for one in found if not (chosen and leads_elsewhere(one, tree.source))]


def warnings_in(lines: Sequence[str], source: Path) -> list[str]:
    """The warnings of sphinx and kernel-doc: `file:line: text`, with the file's path in the tree."""
    found = []
    for line in lines:
        line = line.strip().removeprefix(f"{source}/")
        if _WARNING.search(line) and not line.startswith("make"):
            found.append(shown(line))
    return list(dict.fromkeys(found))


def leads_elsewhere(warning: str, source: Path) -> bool:
    """Whether it is about a label or document that is there, in a folder that is not made."""
    root = source / "Documentation"
    if label := _LABEL.search(warning):
        pattern = rf"^\s*\.\. _`?{re.escape(label['label'])}`?:"
        done = git.call("-C", source, "grep", "--quiet", "-iE", pattern, "--", "Documentation", check=False)
        return done.status == 0
    if document := _DOCUMENT.search(warning):
        name = document["name"]
        beside = source / Path(warning.partition(":")[0]).parent
        places = [root / name.lstrip("/"), *([] if name.startswith("/") else [beside / name])]
        return any(Path(f"{os.path.normpath(place)}.rst").is_file() for place in places)
    return False


def new_warnings(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Those that were not there before, on whatever line; of several that say the same, as many as came."""

    def key(line: str) -> str:
        return re.sub(r":\d+(?=:)", "", line)

    left = Counter(map(key, before))
    new = []
    for line in after:
        left[key(line)] -= 1
        if left[key(line)] < 0:
            new.append(line)
    return new
