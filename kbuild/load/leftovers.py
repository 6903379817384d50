"""What is not as it was: each difference of two states as a finding that names the leftover and whose it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from kbuild import log
from kbuild.elf.image import module_key
from kbuild.elf.resources.acquired import Acquired
from kbuild.errors import UserError
from kbuild.load.request import LoadRequest
from kbuild.load.state import State
from kbuild.outcome import Finding, Status, finding_id

_ALIASES = ("init_module", "cleanup_module")
"""include/linux/module.h, module_init(), module_exit(): other names of a module's own functions."""
Texts = Mapping[str, Mapping[str, int]]
"""Of a module, by the kernel's name: where its code sections were loaded, by their names."""

NO_ANSWER = "cpu-does-not-answer"
"""The signature of a CPU that was waited for in vain."""


class Leftovers:
    """Names the leftovers of one order."""

    def __init__(self, request: LoadRequest, order: str) -> None:
        self._request = request
        self._order = order
        self.texts: dict[str, dict[str, int]] = {}
        """Of each module that the order has loaded, the latest load's."""
        self.tried: set[str] = set()
        """The modules whose init may have been run, be it that it failed; by the kernel's names."""

    def findings(
        self, before: State, after: State, *, failed: bool, said: Callable[[], Collection[str]], fault: str = ""
    ) -> list[Finding]:
        """A finding for each difference.

        `failed`: the kernel is to blame for something in the log, which tells what a taint says. `said` gives the
        signatures that came in it, and is asked only where something differs. `fault`: the call site of an allocation
        that was made to fail, which is part of the id in place of the order.
        """
        if not (different := list(before.difference(after))):
            return []
        seen = said()
        told = {f"taint/{one.taint}" for one in self._request.signatures.signatures if one.taint and one.id in seen}
        quiet = (*(("taint/",) if failed else ()), *(("gone/cpu/",) if NO_ANSWER in seen else ()))
        left = [what for what in different if what not in told and not what.startswith(quiet)]
        return [self._finding(what, f"fault={fault}" if fault else self._order) for what in left]

    def _finding(self, what: str, cause: str) -> Finding:
        called, owners = what, list(self._owners(what))
        kind, *rest = what.split("/")
        if kind == "vmalloc" and rest[0].startswith("0x"):
            # The address of code that is gone: another one in each boot, so it is no name.
            function = next(iter(self.functions(int(rest[0], 16))), None)
            called = "/".join([kind, function[0] if function else "a-module-that-is-gone", *rest[1:]])
            owners += [f"allocated in {function[0]}() of {function[1]}"] if function else []
        message = "; ".join([f"{called} is not as it was before the order", *owners])
        return Finding(id=finding_id("load", "leftover", called, cause), status=Status.FAIL, message=message)

    def _owners(self, what: str) -> Iterator[str]:
        kind, _, name = what.partition("/")
        loaded = [one for one in self._acquired(kind, name) if module_key(one.module) in self.tried]
        # Both vendors' inits make most things, in the same function.
        places = {(one.what, one.acquire, one.function, one.of): one.module for one in reversed(loaded)}
        for (thing, acquire, function, module), init in places.items():
            where = f"in {function}() of {module}" if module != init else f"in {function}()"
            yield f"{init}'s init makes the {thing} '{name}', by {acquire}() {where}"
        if owner := self._request.signatures.owners.get(name.rsplit("/", 1)[-1]):
            yield f"it is {owner}()'s to remove"

    def _acquired(self, kind: str, name: str) -> Sequence[Acquired]:
        try:
            every = self._request.acquired
        except UserError as error:
            log.get().warning("leftover.owners", reason=str(error))
            return ()
        return [one for one in every if kind in one.kinds and one.name == name]

    def functions(self, address: int) -> list[tuple[str, str]]:
        """The functions, each with its module, that an address was in.

        Several, where a module's code came into the place of another one's init.
        """
        found: dict[str, str] = {}
        for module, starts in self.texts.items():
            image = self._request.modules[module]
            sections = {section.index: section for section in image.sections if section.name in starts}
            for symbol in image.symbols:
                section = sections.get(symbol.section or 0)
                if section is not None and symbol.kind == "func":
                    start = starts[section.name] + symbol.value
                    if start <= address < start + symbol.size:
                        if symbol.name not in _ALIASES:
                            found[module] = symbol.name
                        found.setdefault(module, symbol.name)
        return [(name, module) for module, name in found.items()]
