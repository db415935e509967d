"""How often the diagnosis is right on planted faults, and silent on healthy trainings; the peers beside it.

    python benchmarks/diagnosis.py                          faults and healthy trainings, seed 1, every architecture
    python benchmarks/diagnosis.py --mutants 200            so many mutants of the healthy scripts, too
    python benchmarks/diagnosis.py --healthy-seeds 10       each healthy training ten times
    python benchmarks/diagnosis.py --peers                  the rules of others on the same trainings
    python benchmarks/diagnosis.py --quick --every 3        one architecture a fault, a third of the scripts

A fault counts as right where the first finding has its code, and as placed where this points at the right module. The
limits of the rules were set on seed 0 of the scripts and on mutants with an even checksum; seeds from 1 on and mutants
with an odd one are reported. `docs/diagnosis.md` says what each column means.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from environment import write_result

HERE = Path(__file__).resolve().parent / "diagnosis"
sys.path.insert(0, str(HERE))

from mutate import all_mutants  # noqa: E402
from peers import PEERS, peer_outcomes  # noqa: E402
from run import Outcome, Training, is_script, run, trainings  # noqa: E402


def faulty(seeds: Sequence[int], *, quick: bool) -> list[Training]:
    """The trainings with a planted fault."""
    scripts = [path for path in sorted((HERE / "faulty").glob("GL*.py")) if is_script(path)]
    return [one for script in scripts for one in trainings(script, [""] if quick else ["all"], seeds)]


def healthy(seeds: Sequence[int]) -> list[Training]:
    """The healthy trainings."""
    scripts = [path for path in sorted((HERE / "healthy").glob("*.py")) if is_script(path)]
    return [one for script in scripts for one in trainings(script, [""], seeds)]


def mutants(most: int, folder: Path) -> list[Training]:
    """Mutants that no limit was set on, spread over the mutators."""
    by_mutator: dict[str, list[Training]] = defaultdict(list)
    for script, name, mutant in all_mutants():
        label = f"{script.stem}__{name}"
        if zlib.crc32(label.encode()) % 2:
            file = folder / f"{label}.py"
            file.write_text(mutant.source, encoding="utf-8")
            by_mutator[name].append(
                Training(script=file, seed=1, expects=(mutant.code,), place=mutant.place or "", group=name)
            )
    picked: list[Training] = []
    shuffled = random.Random(0)
    for ones in by_mutator.values():
        shuffled.shuffle(ones)
    for turn in range(most):
        picked += [ones[turn] for ones in by_mutator.values() if turn < len(ones)]
        if len(picked) >= most:
            break
    return picked[:most]


def outcomes_of(ones: Iterable[Training]) -> list[Outcome]:
    """Run them one after another, each line said as it comes."""
    found = []
    for one in ones:
        found.append(run(one))
        print(found[-1].line(), flush=True)
    return found


COLUMNS = ("trainings", "right first", "among three", "right place", "with an alarm", "failed", "note")


def row(group: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The shares of one group of faults."""
    return {
        "group": group,
        "trainings": len(outcomes),
        "right first": share(one.has_code for one in outcomes),
        "among three": share(one.has_code_among_three for one in outcomes),
        "right place": share(one.has_place for one in outcomes),
        "with an alarm": share(bool(one.alarms) for one in outcomes),
        "failed": sum(bool(one.error) for one in outcomes),
    }


def healthy_row(group: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The alarms on healthy trainings, and how often exact rules spoke at any severity."""
    alarmed = [one for one in outcomes if one.alarms]
    exact = [found for one in outcomes for found in one.findings if found["certainty"] == "exact"]
    which = ", ".join(sorted({f"{one.training.script.stem}: {one.alarms[0]['code']}" for one in alarmed}))
    return {
        "group": group,
        "trainings": len(outcomes),
        "with an alarm": share(bool(one.alarms) for one in outcomes),
        "failed": sum(bool(one.error) for one in outcomes),
        "note": f"exact rules spoke {len(exact)} times. {which}",
    }


def peer_row(peer: str, planted: Sequence[Training], quiet: Sequence[Training]) -> list[dict[str, Any]]:
    """How often the rules of a peer speak on faults, and say something that fits; and on healthy trainings."""
    spoken = [(one, peer_outcomes(one)[peer]) for one in planted]
    alarms = [peer_outcomes(one)[peer] for one in quiet]
    return [
        {
            "group": f"{peer}: faults",
            "trainings": len(planted),
            "right first": share(bool(said) and bool(set(said[0][1]) & set(one.expects)) for one, said in spoken),
            "among three": share(any(set(codes) & set(one.expects) for _, codes in said[:3]) for one, said in spoken),
            "with an alarm": share(bool(said) for _, said in spoken),
        },
        {"group": f"{peer}: healthy", "trainings": len(quiet), "with an alarm": share(map(bool, alarms))},
    ]


def share(which: Iterable[bool]) -> float:
    """How many of some are true, by their number."""
    every = list(which)
    return round(sum(every) / len(every), 3) if every else 0.0


def main() -> None:
    """Run what is asked for, and write one result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="of each fault, from 1 on")
    parser.add_argument("--healthy-seeds", type=int, default=1, help="of each healthy training, from 1 on")
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one architecture a fault, no repaired twins")
    parser.add_argument("--every", type=int, default=1, help="take each so many-th script only")
    args = parser.parse_args()
    import torch

    import gradlab.attach.watching  # noqa: F401 - so that no child has to

    torch.set_num_threads(1)
    planted = outcomes_of(faulty(range(1, 1 + args.seeds), quick=args.quick)[:: args.every])
    quiet = outcomes_of(healthy(range(1, 1 + args.healthy_seeds))[:: args.every])
    repaired = [] if args.quick else outcomes_of(replace(one.training, repaired=True) for one in planted)
    rows = [row("faults", planted)]
    families: dict[str, list[Outcome]] = defaultdict(list)
    for one in planted:
        families[one.training.expects[0]].append(one)
    rows += [row(code, ones) for code, ones in sorted(families.items())]
    with tempfile.TemporaryDirectory() as folder:
        if args.mutants:
            changed = outcomes_of(mutants(args.mutants, Path(folder)))
            rows.append(row("mutants", changed))
            groups: dict[str, list[Outcome]] = defaultdict(list)
            for one in changed:
                groups[one.training.group].append(one)
            rows += [row(f"mutants: {name}", ones) for name, ones in sorted(groups.items())]
    rows += [healthy_row("healthy", quiet)]
    rows += [healthy_row("repaired", repaired)] if repaired else []
    if args.peers:
        named = [one.training for one in planted if not one.error]
        for peer in PEERS:
            rows += peer_row(peer, named, [one.training for one in quiet])
    rows = [{"group": one["group"]} | {name: one.get(name) for name in COLUMNS} for one in rows]
    write_result("diagnosis", rows, "gradlab", seeds=args.seeds, healthy_seeds=args.healthy_seeds, every=args.every)


if __name__ == "__main__":
    main()
