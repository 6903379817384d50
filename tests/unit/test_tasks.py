"""Protects what a person tries first: each task's --help has examples, and what they and the docs say can be typed."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from invoke.parser import Parser

import tasks
from kbuild.paths import PROJECT

DOCS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
# Options whose values are names of files in profiles/.
NAMED = {"profile": "*.toml", "rules": "rules/*.toml", "host": "hosts/*.toml", "order": "orders/*.toml"}


def examples(name: str) -> list[str]:
    """The lines of a task's examples."""
    _, _, shown = (tasks.ns[name].__doc__ or "").partition("Examples:\n")
    return [line.strip() for line in shown.splitlines() if line.strip()]


def parsed(line: str) -> dict[str, object]:
    """The options of a command line, by name, as Invoke reads them. Raises ParseError for what there is not."""
    words = shlex.split(line, comments=True)
    contexts = Parser(contexts=tasks.ns.to_contexts()).parse_argv(words[1:])
    assert len(contexts) == 1, f"{line}: it would run several tasks"
    return {name: arg.value for name, arg in contexts[0].args.items() if arg.value != arg.default}


@pytest.mark.parametrize("name", sorted(tasks.ns.task_names))
def test_each_task_has_examples_of_its_own(name: str) -> None:
    lines = examples(name)
    assert lines
    for line in lines:
        assert shlex.split(line)[:2] == ["inv", name]
        parsed(line)


@pytest.mark.parametrize("name", sorted(tasks.ns.task_names))
def test_what_an_example_names_is_there(name: str) -> None:
    for line in examples(name):
        for option, value in parsed(line).items():
            values = value if isinstance(value, list) else [value]
            for one in values:
                if option in NAMED and isinstance(one, str) and not re.search(r"[*./@]|^all$", one):
                    names = {path.stem for path in (PROJECT / "profiles").glob(NAMED[option])}
                    assert one in names, line


@pytest.mark.parametrize("words", [["--help", "gate"], ["--list"], ["--help", "lint"]])
def test_help_that_nobody_reads_on_is_no_crash(words: list[str]) -> None:
    line = f"{shlex.join([str(PROJECT / 'scripts/inv'), *words])} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["130"]
    assert done.stderr == ""


def commands(path: Path) -> Iterator[str]:
    """The command lines that a page shows, without those that leave something out."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ )?\./scripts/(inv\b.*)", line.strip())
            if found and "…" not in found[1]:
                yield re.sub(r"\s[|>].*", "", found[1])


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_the_docs_say_can_be_typed(path: Path) -> None:
    for line in commands(path):
        if shlex.split(line, comments=True)[1:] not in ([], ["--list"]):
            parsed(line)


@pytest.mark.parametrize("path", sorted((PROJECT / "docs/ci").glob("*.yml")), ids=lambda path: path.name)
def test_what_a_pipeline_runs_can_be_typed(path: Path) -> None:
    text = re.sub(r"\n +(?=--)", " ", path.read_text("utf-8"))
    (line,) = re.findall(r"kvm-kbuild/scripts/(inv [^>\n]+)", text)
    assert parsed(line)["profile"] == "./release.toml"


def test_the_docs_say_something() -> None:
    assert sum(len([*commands(path)]) for path in DOCS) > 30
