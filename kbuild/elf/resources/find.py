"""Resources of a module set: each init and exit run, what may stay held looked at closely, and told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kbuild import log
from kbuild.elf.code.decode import Code
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Run, Runs, Start, uncollected
from kbuild.elf.code.state import State
from kbuild.elf.contents import MalformedError
from kbuild.elf.findings import STAGE
from kbuild.elf.image import ModuleImage, module_key
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.names import plain_name, stem
from kbuild.elf.places import Places
from kbuild.elf.resources.ledger import ERROR, EXIT, HELD, SUCCESS, Ledger, TooManyError
from kbuild.elf.resources.things import Thing, Things
from kbuild.elf.resources.witness import Look, Seeker, Way
from kbuild.elf.rules.events import string_at
from kbuild.elf.rules.spec import Resource
from kbuild.elf.rules.story import Story
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, finding_id

MAX_CLOSELY = 16
"""Things of one module that are looked at closely."""
MAX_TOGETHER = 6
"""Of these, at once: each may double the states; the more are kept apart, the straighter leads each way to its end."""
MAX_WORK = 8
"""What all of that may cost, in times of what a run of init may."""
MAX_KINDS = 32
"""Of what init has left, each with a run of exit behind it."""
TOO_MUCH = "there is too much to look at"
UNKNOWN = "it is not known what is released there"
WHERE = {ERROR: "when init fails", EXIT: "by exit"}


@dataclass(frozen=True)
class Kept:
    """Something that stays held, or may."""

    thing: Thing
    how: str
    """ERROR or EXIT."""
    way: Way | None
    why: str
    """What stood in the way, where there is none."""
    owner: str | None = None
    """The module whose code acquired it, and whose own exit releases it."""


def find_resources(
    modules: ModuleSet, table: Sequence[Resource], leaves: Collection[str] = (), only: str | None = None
) -> list[Finding]:
    """A finding for each thing that a module's init acquires, and something of it does not release.

    `leaves`: modules whose code is not followed where others call it; `only`: the one that is asked, None: all are.
    Raises UserError for a damaged module.
    """
    images = modules.modules.values()
    keys = set(map(module_key, leaves))
    apart = [image for image in images if module_key(image.name) in keys]
    others = ModuleSet.of((image for image in images if image not in apart), modules.kernel)
    first, second = ([one for one in some if only in (None, one.name)] for some in (others.modules.values(), apart))
    with log.timed("resources", modules=len(modules.modules)) as extra:
        try:
            with uncollected():
                found = [*_findings(others, table, first), *_findings(modules, table, second)]
        except MalformedError as error:
            raise UserError(f"resources cannot be looked for in these modules: {error}") from None
        extra["found"] = len(found)
    return found


def _findings(modules: ModuleSet, table: Sequence[Resource], asked_of: Collection[ModuleImage]) -> Iterator[Finding]:
    used = {one.name for image in modules.modules.values() for one in image.imports}
    things = Things(table)
    if not asked_of or not any(things.about(name)[0] for name in used):
        return
    program = Program(modules)
    runs = Runs(Code(program), cut=True)
    closely = functools.cache(lambda: runs.taught(Code(program)))
    names = [image.name for image in asked_of]
    asked = [_Asked(runs, closely, name, Things(table)) for name in names if runs.entry(name, "init") is not None]
    done = runs.settle([one.job for one in asked])
    teller = _Teller(runs.program)
    for one, run in zip(asked, done, strict=True):
        if run is not None:
            told = (teller.finding(one.module, kept) for kept in one.kept(run))
            yield from {finding.id: finding for finding in told}.values()
            if run.flow.trouble.given_up is not None:
                yield teller.given_up(one.module, run.flow.trouble.given_up)


class _Asked:
    """One module's init, and its exit behind it."""

    def __init__(self, runs: Runs, closely: Callable[[], Runs], module: str, things: Things) -> None:
        """`closely`: runs that join less, for what stays held at a first look."""
        self.module = module
        self._runs = runs
        self._close = closely
        self._things = things
        self._ledger = Ledger(things, "init")
        self.job = Job(module, "init", self._ledger)
        self._work = 0.0
        """What has been done closely, in the same."""
        self._violated: set[object] = set()
        """What was told of with a way, by what tells it from others for a reader."""

    def kept(self, init: Run) -> Iterator[Kept]:
        """What stays held; `init` is of `job`."""
        suspects = self._suspects(Look(init, self._ledger))
        closely = [*suspects][:MAX_CLOSELY]
        for at in range(0, len(closely), MAX_TOGETHER):
            yield from self._some({number: suspects[number] for number in closely[at : at + MAX_TOGETHER]})
        for number in suspects.keys() - {*closely}:
            yield from self._too_much(number, suspects[number])

    def _some(self, suspects: Mapping[int, Collection[str]]) -> Iterator[Kept]:
        """Look at some things closely: at all of them at once, or at fewer of them, as long as that is too much.

        Things that are acquired together are beside each other, and do not make more states than one of them does.
        """
        try:
            yield from self._closely(suspects)
        except TooManyError:
            numbers = [*suspects]
            if len(numbers) == 1 or self._work > MAX_WORK:
                for number in numbers:
                    yield from self._too_much(number, suspects[number])
                return
            half = len(numbers) // 2
            for part in (numbers[:half], numbers[half:]):
                yield from self._some({number: suspects[number] for number in part})

    def _too_much(self, number: int, ends: Collection[str]) -> Iterator[Kept]:
        for how in sorted(ends):
            yield Kept(self._things.every[number], how, None, TOO_MUCH)

    def _suspects(self, look: Look) -> dict[int, Collection[str]]:
        """Things that may stay held, and at which ends: in order. States are joined whatever they hold."""
        found: dict[int, set[str]] = {}
        for how, ledger in ((ERROR, look.ledger), *((EXIT, one.ledger) for one in self._exits(self._runs, look))):
            for number in ledger.held[how] | ledger.unclear[how]:
                found.setdefault(number, set()).add(how)
        # Where nobody takes a positive result for success, it is none; where somebody does, 0 is none.
        every, believed = self._things.every, look.ledger.held[SUCCESS]
        positive = {every[number].chain for number in believed if every[number].resource.success == "positive"}
        return {
            number: found[number]
            for number in sorted(found)
            if (
                number in believed
                if every[number].resource.success == "positive"
                else every[number].chain not in positive
            )
        }

    def _closely(self, suspects: Mapping[int, Collection[str]]) -> Iterator[Kept]:
        """Look at some things, with states kept apart by which are held. If it raises TooManyError, then first."""
        if not suspects:
            return
        if self._work > MAX_WORK:
            raise TooManyError
        runs = self._close()
        ledger = Ledger(self._things, "init", suspects)
        run = self._run(runs, Job(self.module, "init", ledger))
        if len(suspects) > 1 and run.flow.trouble.given_up is not None:
            raise TooManyError
        look = Look(run, ledger)
        exits = self._exits(runs, look) if any(EXIT in ends for ends in suspects.values()) else []
        for number, ends in suspects.items():
            thing = self._things.every[number]
            for how in sorted(ends):
                what = (thing.acquire, how, thing.name, thing.object or thing.chain[-1])
                kept = self._told(number, how, look, exits) if what not in self._violated else None
                if kept is not None:
                    if kept.way is not None:
                        self._violated.add(what)
                    yield kept

    def _exits(self, runs: Runs, init: Look) -> list[Look]:
        """Exit as it is called behind init, where there is one: once for each kind of what init has left."""
        if self._runs.entry(self.module, "exit") is None:
            return []
        kinds: dict[tuple[int, ...], list[State]] = {}
        for end in init.ledger.ends[SUCCESS]:
            kinds.setdefault(end.marks, []).append(end)
        if len(kinds) > MAX_KINDS:
            raise TooManyError
        looks: list[Look] = []
        for marks, ends in kinds.items():
            ledger = Ledger(self._things, "exit", init.ledger.apart, init.ledger.handles)
            run = self._run(runs, Job(self.module, "exit", ledger, Start.after(init.run, ends, marks)))
            looks.append(Look(run, ledger, marks))
            if ledger.apart and self._work > MAX_WORK:
                raise TooManyError
        return looks

    def _run(self, runs: Runs, job: Job) -> Run:
        """An entry that is there."""
        run = runs.run(job)
        assert run is not None
        self._work += run.flow.budget.work / run.flow.budget.allowed
        return run

    def _told(self, number: int, how: str, init: Look, exits: Sequence[Look]) -> Kept | None:
        """One thing, by which states were kept apart, at one end; None: it is released."""
        thing = self._things.every[number]
        seeker = Seeker(self._close(), number)
        looks = exits if how == EXIT else [init]
        held = [one for one in looks if number in one.ledger.held[how]]
        owner = self._owner(thing)
        if held and owner is not None and self._gives_back(owner, number, how, held):
            return Kept(thing, how, None, "", owner)
        if how == EXIT and any(number in one.ledger.unclear[how] for one in held):
            # Where it gives one back it is not known which: that it gives none back, say because a list is empty that
            # the kernel was given to fill, may be no way at all.
            return Kept(thing, how, None, UNKNOWN)
        for one in held:
            way = seeker.of_exit(init, one) if how == EXIT else seeker.of_init(one)
            if way is not None:
                return Kept(self._on(way, number), how, way, "")
        if held:
            return Kept(thing, how, None, seeker.why)
        if any(number in one.ledger.unclear[how] for one in looks):
            return Kept(thing, how, None, UNKNOWN)
        if any(one.run.flow.trouble.given_up is not None for one in (init, *looks)):
            return Kept(thing, how, None, TOO_MUCH)
        return None

    def _owner(self, thing: Thing) -> str | None:
        """The module whose code acquires it, where it is another one that can be unloaded too."""
        linked = self._runs.program.module_at(thing.chain[-1])
        if linked is None or linked.name == self.module or self._runs.entry(linked.name, "exit") is None:
            return None
        return linked.name

    def _gives_back(self, owner: str, number: int, how: str, looks: Sequence[Look]) -> bool:
        """Whether another module's exit releases it for sure, wherever it is still held at the end of these runs."""
        for look in looks:
            kinds: dict[tuple[int, ...], list[State]] = {}
            for end in look.ledger.ends[how]:
                if look.ledger.mark(end, number) == HELD:
                    kinds.setdefault(end.marks, []).append(end)
            for marks, ends in kinds.items():
                ledger = Ledger(self._things, "exit", look.ledger.apart, look.ledger.handles)
                run = self._run(self._close(), Job(owner, "exit", ledger, Start.after(look.run, ends, marks)))
                if number in ledger.held[EXIT] | ledger.unclear[EXIT] or run.flow.trouble.cut:
                    return False
        return True

    def _on(self, way: Way, number: int) -> Thing:
        """A thing as it is acquired on a way through init."""
        sites = {step.site for step in way[0]}
        chains = [*self._things.chains[number]]
        chain = next((one for one in chains if sites.issuperset(one)), chains[0])
        return replace(self._things.every[number], chain=chain)


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
        elif kept.owner is not None:
            text += f" is not released {WHERE[kept.how]}, but by the exit of {kept.owner}, whose code acquires it"
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

    def given_up(self, module: str, place: int) -> Finding:
        """Said of a module whose init is not followed to its end: nothing is known of what is there."""
        return Finding(
            id=finding_id(STAGE, "resource", module, "not-followed"),
            status=Status.DONE,
            rule="resource",
            module=module,
            answer="unknown",
            message=f"{module}: what init acquires may not be released, and it cannot be told: {TOO_MUCH}",
            witness=(f"given up at {self._places.told(place)}",),
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
