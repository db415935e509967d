"""Runs scripts of the corpus as `gradlab attach` does, and says what was found: one line a training.

    python benchmarks/diagnosis/run.py 'faulty/GL101*' --net all          the faults, in each architecture
    python benchmarks/diagnosis/run.py 'faulty/GL101*' --repaired         the same without the fault
    python benchmarks/diagnosis/run.py 'healthy/*' --seed 3               no warning and no error may come
    python benchmarks/diagnosis/run.py faulty/GL101_forgotten_head.py --show    with every sentence

Each script runs in a process of its own, forked from one that has imported torch already.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Training:
    """One script with its arguments, and what is known of it."""

    script: Path
    net: str = ""
    seed: int = 0
    repaired: bool = False
    steps: int | None = None
    expects: tuple[str, ...] = ()
    """The codes that are right; none for a healthy training."""
    place: str = ""
    group: str = ""
    """Under which a table counts it, where that is not the code."""

    @property
    def name(self) -> str:
        """How a line calls it."""
        return " ".join(filter(None, [self.script.stem, self.net, "repaired" * self.repaired, f"seed {self.seed}"]))

    @property
    def arguments(self) -> list[str]:
        """Its command line."""
        words = ["--seed", str(self.seed), *(["--net", self.net] if self.net else [])]
        words += ["--repaired"] if self.repaired else []
        return words + (["--steps", str(self.steps)] if self.steps is not None else [])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What gradlab said of a training."""

    training: Training
    findings: list[dict[str, Any]]
    """Ranked, roots first."""
    seconds: float
    error: str = ""

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The findings above `info`."""
        return [one for one in self.findings if one["severity"] != "info"]

    @property
    def has_code(self) -> bool:
        """Whether the first finding is the right one."""
        return bool(self.findings) and self.findings[0]["code"] in self.training.expects

    @property
    def has_code_among_three(self) -> bool:
        """Whether one of the first three is."""
        return any(one["code"] in self.training.expects for one in self.findings[:3])

    @property
    def has_place(self) -> bool:
        """Whether the right finding points at the right place; the module of a parameter counts as well."""
        wanted = self.training.place
        right = next((one for one in self.findings if one["code"] in self.training.expects), None)
        return right is not None and (not wanted or any(is_same_place(site, wanted) for site in right["sites"][:1]))

    def line(self) -> str:
        """One line for people."""
        if self.error:
            verdict = f"FAILED {self.error}"
        elif not self.training.expects or self.training.repaired:
            verdict = "ALARM" if self.alarms else "silent"
        elif not self.has_code:
            verdict = "MISSED, not first" if self.has_code_among_three else "MISSED"
        else:
            verdict = "right" if self.has_place else f"PLACE, not {self.training.place!r}"
        said = ", ".join(
            f"{one['code']}{'?' if one['severity'] == 'info' else ''}{'@' + one['sites'][0] if one['sites'] else ''}"
            f"{' <- ' + one['explained_by'] if one['explained_by'] else ''}"
            for one in self.findings
        )
        return f"{self.training.name:<60} {verdict:<18} {said}  ({self.seconds:.1f} s)"


def is_same_place(site: str, wanted: str) -> bool:
    """Whether a site is the wanted one, in it, or the module that it is in."""
    site, wanted = site.partition(":")[0], wanted.partition(":")[0]
    return site == wanted or site.startswith(f"{wanted}.") or wanted.rpartition(".")[0] == site != ""


def trainings(script: Path, nets: Sequence[str], seeds: Sequence[int], **options: Any) -> Iterator[Training]:
    """The trainings that a script offers: each architecture among `nets`, or all for `all`, or the first."""
    known = _told_of(script)
    expects = known.get("EXPECTS", ())
    places: dict[str, str] = known.get("PLACE", {"": ""})
    chosen = list(places) if "all" in nets else [net for net in nets if net in places] or list(places)[:1]
    for net in chosen:
        for seed in seeds:
            yield Training(
                script=script,
                net=net,
                seed=seed,
                expects=(expects,) if isinstance(expects, str) else tuple(expects),
                place=places[net],
                **options,
            )


def _told_of(script: Path) -> dict[str, Any]:
    """EXPECTS and PLACE, as the script says them, or as the index beside a mutant does."""
    index = script.parent / "index.json"
    if index.exists():
        rows = (row for row in json.loads(index.read_text(encoding="utf-8")) if row["file"] == script.name)
        return {"EXPECTS": row["code"], "PLACE": {"": row["place"]}} if (row := next(rows, None)) else {}
    parts = script.parent / "parts.py"
    known = dict(_told_of(parts)) if parts != script and parts.exists() else {}
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id in ("EXPECTS", "PLACE", "NETS"):
            same = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "dict.fromkeys"
            keys = node.value.args[0] if isinstance(node.value, ast.Call) and same else None
            nets = () if keys is None else known["NETS"] if isinstance(keys, ast.Name) else ast.literal_eval(keys)
            known[target.id] = dict.fromkeys(nets, "") if same else ast.literal_eval(node.value)
    return known


def run(training: Training, *, limit: float = 120.0) -> Outcome:
    """Run a training in a forked process, attached."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        child = os.fork()
        if child == 0:
            _run_here(training, Path(folder))
        code = wait_for(child, limit)
        found = Path(folder) / "found.json"
        findings = json.loads(found.read_text()) if found.exists() else []
        error = "" if code == 0 else (Path(folder) / "output").read_text()[-300:].strip().rpartition("\n")[2]
    return Outcome(training=training, findings=findings, seconds=time.monotonic() - began, error=error)


def wait_for(child: int, limit: float) -> int:
    """The status of a forked process, which is ended after so many seconds."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.05)
    os.kill(child, 9)
    return os.waitpid(child, 0)[1]


def _run_here(training: Training, folder: Path) -> None:
    """In the forked process: be what `gradlab attach` makes of a process, run the script, and leave."""
    code = 1
    with open(folder / "output", "w", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            os.chdir(folder)
            from gradlab.attach.options import AttachOptions
            from gradlab.attach.watching import Session
            from gradlab.diagnose.ranking import ranked
            from gradlab.finding import finding_record

            options = AttachOptions(
                command_pid=os.getpid(), began=time.time(), command=(), run="", logdir=str(folder / "logs")
            )
            session = Session(options)
            session.begin()
            sys.argv = [str(training.script), *training.arguments]
            sys.path.insert(0, str(training.script.parent))
            with contextlib.suppress(SystemExit):
                runpy.run_path(str(training.script), run_name="__main__")
            found = []
            for one in session.watched:
                one.close()
                found += one.earlier.findings if one.earlier is not None else ()
            records = [finding_record(one) for one in ranked(found)]
            (folder / "found.json").write_text(json.dumps(records))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            output.flush()
            os._exit(code)


def is_script(path: Path) -> bool:
    """Whether a file is a training, and not a part that several share."""
    return "--seed" in (text := path.read_text(encoding="utf-8")) or "args = arguments(" in text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scripts", nargs="+", help="globs below this folder, or paths")
    parser.add_argument("--net", default="", help="architectures, by commas, or all; the first where left out")
    parser.add_argument("--seed", default="0", help="seeds, by commas")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repaired", action="store_true")
    parser.add_argument("--show", action="store_true", help="print each finding")
    parser.add_argument("--wrong", action="store_true", help="print the lines alone that are not as they should be")
    args = parser.parse_args()
    paths = [
        path for glob in args.scripts for path in ([Path(glob)] if Path(glob).exists() else sorted(HERE.glob(glob)))
    ]
    scripts = [path.resolve() for path in paths if "add_argument" in (text := path.read_text()) or "arguments(" in text]
    import torch

    torch.set_num_threads(1)
    outcomes = []
    for script in scripts:
        seeds = [int(one) for one in args.seed.split(",")]
        for training in trainings(script, args.net.split(","), seeds, repaired=args.repaired, steps=args.steps):
            outcomes.append(run(training))
            line = outcomes[-1].line()
            is_good = "right" in line or "silent" in line
            if not (args.wrong and is_good):
                print(line, flush=True)
            for one in outcomes[-1].findings if args.show else ():
                steps = f"{one['first_step']} to {one['last_step']}"
                print(f"    {one['severity']} {one['code']} at steps {steps}: {one['message']}")
                print(f"        {one['remedy']}  {one['sites'][:4]} {one['evidence']}")
    faulty = [one for one in outcomes if one.training.expects and not one.training.repaired]
    healthy = [one for one in outcomes if not one.training.expects or one.training.repaired]
    if faulty:
        print(
            f"{len(faulty)} faulty: right first {sum(one.has_code for one in faulty)}, among three "
            f"{sum(one.has_code_among_three for one in faulty)}, place {sum(one.has_place for one in faulty)}"
        )
    if healthy:
        print(f"{len(healthy)} healthy: {sum(bool(one.alarms) for one in healthy)} with an alarm")


if __name__ == "__main__":
    main()
