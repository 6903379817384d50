"""Resources of a module set: each init and exit run, what may stay held looked at closely, and told."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from kbuild import log
from kbuild.elf.code.decode import Code
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Run, Runs, Start, uncollected
from kbuild.elf.code.walk import Step
from kbuild.elf.contents import MalformedError
from kbuild.elf.findings import STAGE
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.names import plain_name, stem
from kbuild.elf.places import Places
from kbuild.elf.resources.ledger import ERROR, EXIT, HELD, SUCCESS, Ledger, Thing, Things
from kbuild.elf.resources.witness import Look, Seeker
from kbuild.elf.rules.events import string_at
from kbuild.elf.rules.spec import Resource
from kbuild.elf.rules.story import Story
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, finding_id

MAX_CLOSELY = 16
"""Things of one module that are looked at closely: each takes another run."""
WHERE = {ERROR: "when init fails", EXIT: "by exit"}
Way = tuple[tuple[Step, ...], tuple[Step, ...] | None]
"""Through init, and through exit behind it."""


@dataclass(frozen=True)
class Kept:
    """Something that stays held, or may."""

    thing: Thing
    how: str
    """ERROR or EXIT."""
    way: Way | None
    why: str
    """What stood in the way, where there is none."""


def find_resources(modules: ModuleSet, table: Sequence[Resource], only: Collection[str] | None = None) -> list[Finding]:
    """A finding for each thing that a module's init acquires, and something of it does not release.

    `only`: the modules that are asked; None: all. Raises UserError for a damaged module.
    """
    with log.timed("resources", modules=len(modules.modules)) as extra:
        try:
            with uncollected():
                found = list(_findings(modules, table, only))
        except MalformedError as error:
            raise UserError(f"resources cannot be looked for in these modules: {error}") from None
        extra["found"] = len(found)
    return found


def _findings(modules: ModuleSet, table: Sequence[Resource], only: Collection[str] | None) -> Iterator[Finding]:
    used = {one.name for image in modules.modules.values() for one in image.imports}
    things = Things(table)
    if not any(things.about(name)[0] for name in used):
        return
    runs = Runs(Code(Program(modules)))
    names = [name for name in runs.program.modules if only is None or name in only]
    asked = [_Asked(runs, name, Things(table)) for name in names if runs.entry(name, "init") is not None]
    done = runs.settle([one.job for one in asked])
    teller = _Teller(runs.program)
    for one, run in zip(asked, done, strict=True):
        if run is not None:
            told = (teller.finding(one.module, kept) for kept in one.kept(run))
            yield from {finding.id: finding for finding in told}.values()


class _Asked:
    """One module's init, and its exit behind it."""

    def __init__(self, runs: Runs, module: str, things: Things) -> None:
        self.module = module
        self._runs = runs
        self._things = things
        self._ledger = Ledger(things, "init")
        self.job = Job(module, "init", self._ledger)

    def kept(self, init: Run) -> Iterator[Kept]:
        """What stays held; `init` is of `job`."""
        suspects: dict[int, set[str]] = {}
        for number in (*self._ledger.held[ERROR], *self._ledger.unclear[ERROR]):
            suspects.setdefault(number, set()).add(ERROR)
        exit_ = self._exit(Look(init, self._ledger))
        if exit_ is not None:
            for number in (*exit_.ledger.held[EXIT], *exit_.ledger.unclear[EXIT]):
                suspects.setdefault(number, set()).add(EXIT)
        every = self._things.every
        for number in [one for one in suspects if every[one].resource.success == "positive"]:
            if number not in self._ledger.believed:
                del suspects[number]  # nobody takes a positive result for success: it is none
        for tried, (number, ends) in enumerate(sorted(suspects.items())):
            if tried < MAX_CLOSELY:
                yield from self._closely(number, ends)
            else:
                for how in sorted(ends):
                    yield Kept(every[number], how, None, "there is too much to look at")

    def _exit(self, init: Look, number: int | None = None) -> Look | None:
        """Exit as it is called behind init, where there is one; with a number, behind what holds that."""
        ends = init.ledger.ends[SUCCESS]
        if number is not None:
            ends = [end for end in ends if init.ledger.mark(end, number) == HELD]
        if not ends or self._runs.entry(self.module, "exit") is None:
            return None
        closely = () if number is None else (number,)
        ledger = Ledger(self._things, "exit", closely)
        run = self._runs.run(Job(self.module, "exit", ledger, Start.after(init.run, ends, (HELD,) * len(closely))))
        return Look(run, ledger) if run is not None else None

    def _closely(self, number: int, ends: Collection[str]) -> Iterator[Kept]:
        """Look at one thing, with states kept apart by whether it is held."""
        thing = self._things.every[number]
        ledger = Ledger(self._things, "init", [number])
        run = self._runs.run(Job(self.module, "init", ledger))
        assert run is not None, "it was there before"
        init = Look(run, ledger)
        seeker = Seeker(self._runs, self._things, number)
        if ERROR in ends:
            if ledger.held[ERROR][number]:
                way = seeker.of_init(init, ERROR)
                yield Kept(thing, ERROR, (way, None) if way is not None else None, seeker.why)
            elif ledger.unclear[ERROR][number]:
                yield Kept(thing, ERROR, None, "it is not known what is released there")
        if EXIT in ends:
            exit_ = self._exit(init, number)
            if exit_ is not None and exit_.ledger.held[EXIT][number]:
                both = seeker.of_exit(init, exit_)
                yield Kept(thing, EXIT, both, seeker.why)
            elif ledger.unclear[SUCCESS][number] or (exit_ is not None and exit_.ledger.unclear[EXIT][number]):
                yield Kept(thing, EXIT, None, "it is not known what is released there")


class _Teller:
    """Says of things of one program what they are, by names."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._places = Places(program)
        self._story = Story(program)

    def finding(self, module: str, kept: Kept) -> Finding:
        thing = kept.thing
        function = self._function(thing.chain[-1])
        name = self._name(thing)
        cause = f"{thing.acquire}-{name or function}-{kept.how}"
        called = f' "{name}"' if name is not None else ""
        text = f"{module}: {thing.resource.what}{called}, acquired by {thing.acquire}() in {function}(),"
        if kept.way is not None:
            text += f" is not released {WHERE[kept.how]}"
        else:
            text += f" may not be released {WHERE[kept.how]}, and it cannot be told: {kept.why}"
        return Finding(
            id=finding_id(STAGE, "resource", module, cause),
            status=Status.FAIL if kept.way is not None else Status.DONE,
            rule="resource",
            module=module,
            answer="violated" if kept.way is not None else "unknown",
            message=text,
            witness=tuple(self._told(thing, kept)),
        )

    def _told(self, thing: Thing, kept: Kept) -> Iterator[str]:
        yield f"acquired by {thing.acquire}() at {self._places.told(thing.chain[-1])}"
        for site in thing.chain[-2::-1]:
            yield f"  called at {self._places.told(site)}"
        if kept.way is None:
            return
        first, then = kept.way
        yield "a way through init:"
        for line in self._story.path(first, thing.chain):
            yield f"  {line}"
        if then is None:
            yield "init returns an error, and it is still held"
        else:
            yield "init returns with success; a way through exit behind it:"
            for line in self._story.path(then):
                yield f"  {line}"
            yield "exit returns, and it is still held"

    def _name(self, thing: Thing) -> str | None:
        """The string that names it, or the object's name."""
        if thing.name is not None:
            return string_at(self._program, thing.name)
        name = self._program.name(thing.object) if thing.object is not None else None
        return plain_name(name.symbol) if name is not None else None

    def _function(self, address: int) -> str:
        name = self._program.name(address)
        return stem(name.symbol) if name is not None else f"{address:#x}"
