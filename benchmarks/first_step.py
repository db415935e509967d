"""How long until the first training step: `gradlab run` against the same model in a bare Lightning script.

Both are fresh processes, run in turn; each prints the moment at which its first training step has ended.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import write_result

ROOT = Path(__file__).parent.parent
ROUNDS = 7
TELL = """
import os, time, pytorch_lightning as pl
class Tell(pl.Callback):
    def on_train_batch_end(self, *_):
        print("FIRST", time.monotonic(), flush=True)
        os._exit(0)
"""
BARE = """
from gradlab.data import Digits
from gradlab.models import MLP
pl.seed_everything(7)
pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Tell()]).fit(
    MLP(widths=[128, 64]), Digits(batch_size=64)
)
"""
OURS = """
import sys
import gradlab.launch.session as fit
init = pl.Trainer.__init__
def with_tell(self, *args, callbacks=None, **kwargs):
    init(self, *args, callbacks=[*(callbacks or []), Tell()], **kwargs)
pl.Trainer.__init__ = with_tell
from gradlab.cli.main import main
sys.argv = ["gradlab", "run", "experiments/digits.yaml", "--runs", sys.argv[1]]
main()
"""


def seconds_to_first_step(script: str, folder: str) -> float:
    """Wall seconds from starting Python to the end of the first training step."""
    began = time.monotonic()
    out = subprocess.run(
        [sys.executable, "-c", TELL + script, folder], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    (line,) = [line for line in out.stdout.splitlines() if line.startswith("FIRST")]
    return float(line.split()[1]) - began


def main() -> None:
    """Measure both in turn and write the result."""
    times: dict[str, list[float]] = {"bare Lightning script": [], "gradlab run": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            times["bare Lightning script"].append(seconds_to_first_step(BARE, folder))
            times["gradlab run"].append(seconds_to_first_step(OURS, folder))
    bare = statistics.median(times["bare Lightning script"])
    rows = [
        {
            "variant": name,
            "seconds": round(statistics.median(values), 2),
            "ratio": round(statistics.median(values) / bare, 3),
        }
        for name, values in times.items()
    ]
    write_result("first_step", rows, "pytorch-lightning", rounds=ROUNDS)


if __name__ == "__main__":
    main()
