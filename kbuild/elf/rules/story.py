"""A witness as a person can follow it in the source: function by function, with each branch that was not forced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from kbuild.elf.code.link import Program
from kbuild.elf.places import Places
from kbuild.elf.rules.orders import Answer

if TYPE_CHECKING:
    from kbuild.elf.code.walk import Step


class Story:
    """Tells witnesses of one program."""

    def __init__(self, program: Program) -> None:
        self._places = Places(program)

    def tell(self, answer: Answer) -> Iterator[str]:
        """Lines from the entry to where the rule is broken."""
        assert answer.witness is not None
        lines = self.path(answer.witness.steps)
        yield from lines
        then = answer.rule.then.told([answer.witness.called]) if answer.witness.called else answer.then
        depth = sum({"call": 1, "return": -1}.get(step.kind, 0) for step in answer.witness.steps)
        inside = " (inlined) does something" if answer.witness.inlined else ""
        yield "  " * max(depth, 0) + f"{then}{inside} at {self._places.told(answer.witness.end)}"
        if answer.rule.first is not None:
            yield f"{answer.first} has not happened on this way"

    def path(self, steps: Iterable[Step], unfolded: Collection[int] = ()) -> list[str]:
        """A way, a line for each of its steps.

        A call that has returned is one line, if it is not one of those, by their places, that are to be `unfolded`.
        """
        open_calls: list[list[tuple[int, str]]] = [[]]
        for step in steps:
            depth = len(open_calls) - 1
            if step.kind == "return":
                if len(open_calls) > 1:
                    inside = open_calls.pop()
                    open_calls[-1] += inside if step.site in unfolded else ()
                    open_calls[-1].append(
                        (depth - 1, f"{self._called(step)} returns to {self._places.told(step.site)}")
                    )
            elif step.kind == "call":
                open_calls.append([(depth, f"{self._called(step)} is called at {self._places.told(step.site)}")])
            elif step.kind == "branch":
                which = "taken" if step.taken else "not taken"
                open_calls[-1].append((depth, f"branch {which} at {self._places.told(step.site)}"))
            elif step.kind == "begin":
                open_calls[-1].append((depth, f"{step.name} (inlined) begins at {self._places.told(step.site)}"))
        return ["  " * depth + text for some in open_calls for depth, text in some]

    def _called(self, step: Step) -> str:
        name = step.call.name if step.call is not None else None
        return f"{name}()" if name is not None else "a function"
