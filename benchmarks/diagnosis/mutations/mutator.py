"""What a mutator and a mutant are, and the table that the decorator `mutator` fills."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass

from mutations.script import NotHere, Script


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A script with one fault."""

    source: str
    code: str
    """The finding that gradlab should give."""
    place: str | None
    """The site that the finding should point at: "" is the whole run, None is not known from the source."""


@dataclass(frozen=True, kw_only=True)
class Mutator:
    """One way of planting a fault."""

    name: str
    code: str
    about: str
    plant: Callable[[Script], str | None]
    """Changes the script in place and gives the place of the fault, or raises `NotHere`."""

    def apply(self, tree: ast.Module) -> Mutant | None:
        """The script with the fault, or None where it has no place for it. The tree given is left as it is."""
        script = Script(ast.parse(ast.unparse(tree)))  # a copy, faster than deepcopy
        try:
            place = self.plant(script)
        except NotHere:
            return None
        lines = [statement for statement in script.tree.body if statement is not script.docstring]
        first = ast.Expr(ast.Constant(f"A healthy script with one fault, {self.name}: {self.about}."))
        source = ast.unparse(ast.fix_missing_locations(ast.Module([first, *lines], [])))
        return Mutant(source=source + "\n", code=self.code, place=place)


MUTATORS: dict[str, Mutator] = {}


def mutator(code: str):
    """Adds a function to the table under its name; the first line of its docstring says what it plants."""

    def add(plant):
        about = plant.__doc__.splitlines()[0].rstrip(".")
        MUTATORS[plant.__name__] = Mutator(name=plant.__name__, code=code, about=about, plant=plant)
        return plant

    return add
