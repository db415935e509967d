"""The last line of the command's own process, where that has trained nothing: where results are, or why there are none.

Often it is a launcher such as torchrun, which ends after all that it has started and so knows what a rank zero that was
killed could not write down. Imports no torch, and so is no part of `report`: it may be a process without it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gradlab.attach.options import AttachOptions
from gradlab.attach.rendezvous import take_noted_address
from gradlab.launch.rank_failures import Failure, first_failure
from gradlab.runs.folder import RunFolder


def close_command(
    options: AttachOptions, *, code: int, reason: str, nothing: str, failure: Failure | None = None
) -> None:
    """Print the last line, and complete `exit.json` where rank zero could not.

    Args:
        options: of the command.
        code: the exit code of this process, as far as it is known.
        reason: of its end.
        nothing: what is said where no process has written results.
        failure: the rank that has failed, where this process knows.
    """
    address = take_noted_address(options)
    if address:
        _say(f"the results are with those of rank zero, {address}")
    elif not options.has_results():
        _say(f"nothing was watched: {nothing}")
    elif options.run:
        run = RunFolder(Path(options.run))
        _settle(run, code, reason, _noted_before_the_end(run, options.began) or failure)


def _noted_before_the_end(run: RunFolder, began: float) -> Failure | None:
    """The first failure of which a rank has left word; of those after rank zero's end, that is the cause."""
    noted = first_failure(run, since=began, patience=False)
    if noted is not None and run.exit.exists() and noted.at > run.exit.stat().st_mtime:
        return None
    return noted


def _settle(run: RunFolder, code: int, reason: str, failure: Failure | None) -> None:
    """Write down how the run ended where its rank zero could not, or knew no more than that another rank was gone."""
    ended = run.read_exit()
    if ended is not None and (ended.get("handed_on") or {}).get("pid") == os.getpid():
        run.write_exit(**{**ended, "code": code, "reason": reason})  # an earlier program of this process has trained
        return
    if run.status() == "running" or (ended is not None and ended["code"] == 0):
        return
    if failure is not None:
        reason = f"rank {failure.rank} failed, {failure.reason}"
    if ended is None:
        run.write_exit(code=code or 1, reason=reason if code or failure else "its process was killed")
    elif failure is not None and failure.rank:
        run.write_exit(**{**ended, "reason": reason})


def _say(line: str) -> None:
    print(f"gradlab: {line}", file=sys.stderr, flush=True)
