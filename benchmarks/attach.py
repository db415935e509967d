"""What `gradlab attach` adds to a script: to its start, until the first optimizer step is done, to each later step, and
to the whole of it, with the summary at the end.

The same script, bare and attached, in fresh processes that take turns; each round gives a difference and a ratio of
its own, of which the medians are shown. CPU time is that of the process, so that other work on the machine counts less.
The claim: no more than 3 s to the start.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import write_result

ROUNDS, STEPS = int(os.environ.get("ATTACH_ROUNDS", "7")), int(os.environ.get("ATTACH_STEPS", "200"))
ATTACH = (sys.executable, "-m", "gradlab", "attach", "--logdir")
ALL = ("--taps", "*=output,output_grad,weight_grad")
VARIANTS = {
    "bare": (sys.executable,),
    "attached": (*ATTACH, "default"),
    "attached, every 10 steps": (*ATTACH, "tenth", "--every", "10"),
    "attached, outputs too": (*ATTACH, "all", *ALL),
}
SCRIPT = f"""
import json, os, time
import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(256, 256), nn.ReLU())], nn.Linear(256, 10))
optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
x, y = torch.randn(128, 256), torch.randint(0, 10, (128,))

def step():
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()

step()
found = {{"start_s": time.time() - float(os.environ["BEGAN"]), "start_cpu_s": time.process_time()}}
for _ in range(20):
    step()
began = time.process_time()
for _ in range({STEPS}):
    step()
found["step_cpu_ms"] = (time.process_time() - began) / {STEPS} * 1e3
print(json.dumps(found))
"""


def measure(command: tuple[str, ...], folder: Path) -> dict[str, float]:
    """What the script has measured itself: the command becomes the script, so its CPU time counts as well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BEGAN": str(time.time())}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "train.py"], cwd=folder, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stderr)
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout), "whole_cpu_s": whole}


def row(name: str, found: list[dict[str, float]], bare: list[dict[str, float]]) -> dict[str, Any]:
    """The medians over rounds, of differences and ratios within each."""

    def median(key: str) -> float:
        return statistics.median(one[key] for one in found)

    def added(key: str) -> float:
        return statistics.median(one[key] - other[key] for one, other in zip(found, bare, strict=True))

    ratios = [one["step_cpu_ms"] / other["step_cpu_ms"] for one, other in zip(found, bare, strict=True)]
    return {
        "variant": name,
        "start s": median("start_s"),
        "added s": added("start_s"),
        "start CPU s": median("start_cpu_s"),
        "added CPU s": added("start_cpu_s"),
        "of the whole": added("whole_cpu_s"),
        "step CPU ms": median("step_cpu_ms"),
        "step ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text(SCRIPT)
        for number in range(ROUNDS + 1):
            for name, command in VARIANTS.items():
                measured = measure(command, Path(folder))
                if number:  # the first round fills the disk's cache
                    found[name].append(measured)
    rows = [row(name, measured, found["bare"]) for name, measured in found.items()]
    load = round(os.getloadavg()[1], 1)
    write_result("attach", rows, "gradlab", rounds=ROUNDS, steps=STEPS, load_average=load)


if __name__ == "__main__":
    main()
