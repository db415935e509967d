"""Plants a fault into a healthy training script by changing its syntax tree.

    python benchmarks/diagnosis/mutate.py --list
    python benchmarks/diagnosis/mutate.py healthy/gru.py --mutator drop_zero_grad
    python benchmarks/diagnosis/mutate.py --all DIR

A mutant is the script with exactly one fault, the code of the finding that gradlab should give on it and, where the
source tells, the site that this should point at. A mutator gives no mutant where the script has no place for its fault,
or where the fault would not be a clear one: the closure of L-BFGS, the two optimizers of a GAN, the two backwards of
SAM. The faults are in `mutations/`; this file is the way to them from other programs and from the command line.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mutations import inputs, losses, steps, weights, wiring  # noqa: F401 - each fills the table
from mutations.mutator import MUTATORS, Mutant, Mutator

HERE = Path(__file__).parent
HEALTHY = HERE / "healthy"


def mutators() -> dict[str, Mutator]:
    """All mutators by name."""
    return dict(MUTATORS)


def all_mutants() -> Iterator[tuple[Path, str, Mutant]]:
    """Every mutant of every healthy script: the script, the mutator's name, the mutant."""
    for script in sorted(HEALTHY.glob("*.py")):
        tree = ast.parse(script.read_text())
        for name, one in MUTATORS.items():
            if mutant := one.apply(tree):
                yield script, name, mutant


def write_all(folder: Path) -> int:
    """Writes every mutant and `index.json`; gives how many."""
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for script, name, mutant in all_mutants():
        file = folder / f"{script.stem}__{name}.py"
        file.write_text(mutant.source)
        row = {"script": script.name, "mutator": name, "code": mutant.code, "place": mutant.place, "file": file.name}
        index.append(row)
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    return len(index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", nargs="?", type=Path, help="a training script, also relative to this folder")
    parser.add_argument("--mutator", choices=list(MUTATORS), help="which fault to plant")
    parser.add_argument("--out", type=Path, help="the file to write, in place of standard output")
    parser.add_argument("--list", action="store_true", help="say what mutators there are")
    parser.add_argument("--all", type=Path, metavar="DIR", help="write every mutant of every healthy script there")
    args = parser.parse_args()
    if args.list:
        for one in MUTATORS.values():
            print(f"{one.name:22}{one.code}  {one.about}")
        return
    if args.all:
        print(f"{write_all(args.all)} mutants in {args.all}")
        return
    if not (args.script and args.mutator):
        parser.error("give a script and --mutator NAME, or --list, or --all DIR")
    script = args.script if args.script.exists() else HERE / args.script
    mutant = MUTATORS[args.mutator].apply(ast.parse(script.read_text()))
    if mutant is None:
        sys.exit(f"{script.name} has no place for {args.mutator}")
    if args.out:
        args.out.write_text(mutant.source)
    else:
        print(mutant.source, end="")
    print(f"{mutant.code} at {mutant.place!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
