"""`gradlab jacobian`: a slice of a run's or an experiment's Jacobian, printed or saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradlab.cli.options import runs_option
from gradlab.errors import MachineError, UsageError

if TYPE_CHECKING:
    from gradlab.frame import JacobianBlock
    from gradlab.launch.jacobian import Answer

_MOST_SHOWN = 10
_FIRST = ("fro", "fro_lo", "fro_hi", "sigma_1", "sigma_min", "cond", "effective_rank", "stable_rank")


class Entries(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """`10`: the first ten entries; `0,3,-1`: these; `4,`: that one."""

    name = "N or I,J,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """A whole number, or a list of them."""
        if not isinstance(value, str):
            return value
        try:
            if "," not in value:
                return int(value)
            return [int(part) for part in value.split(",") if part.strip()]
        except ValueError:
            self.fail(
                f"{value!r} is neither a number of entries (10) nor a list of indices (0,3,-1 or 4,).", param, ctx
            )


@click.command("jacobian")
@click.argument("what", metavar="RUN_OR_EXPERIMENT")
@click.option("--of", default="output", show_default=True, metavar="SITE", help="What is differentiated.")
@click.option("--wrt", default="input", show_default=True, metavar="SITE", help="What it is differentiated by.")
@click.option("--rows", type=Entries(), help="Entries of --of: the first N, or a list; all where left out.")
@click.option("--cols", type=Entries(), help="Entries of --wrt, likewise.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="How many samples of the data.")
@click.option(
    "--probe", type=click.Choice(["train", "validation"]), default="train", show_default=True, help="Of which."
)
@click.option("--reduce", type=click.Choice(["mean", "rms"]), default="mean", show_default=True, help="Over samples.")
@click.option("--softmax", is_flag=True, help="Differentiate the softmax of --of.")
@click.option("--spectrum-only", is_flag=True, help="Only the norm and leading singular values, without the block.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Another checkpoint than the run's last.")
@click.option(
    "--save",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE.npz|FILE.png",
    help="May be repeated.",
)
@runs_option
def jacobian_command(
    what: str,
    of: str,
    wrt: str,
    rows: int | list[int] | None,
    cols: int | list[int] | None,
    samples: int,
    probe: str,
    reduce: str,
    softmax: bool,
    spectrum_only: bool,
    checkpoint: Path | None,
    files: tuple[Path, ...],
    root: Path,
) -> None:
    """Compute d(of)/d(wrt) of a model and print it.

    RUN_OR_EXPERIMENT is a run (its id, its experiment's name, @1 for the latest), whose last checkpoint is taken, or an
    experiment file, whose model is taken as it is before training. Sites are what `gradlab check EXPERIMENT --sites`
    lists, parameters included.
    """
    for file in files:
        _check_file(file, spectrum_only)
    from gradlab.launch.jacobian import compute_jacobian

    answer = compute_jacobian(
        what,
        root,
        checkpoint=checkpoint,
        probe=probe,
        samples=samples,
        of=of,
        wrt=wrt,
        rows=rows,
        cols=cols,
        reduce=reduce,
        of_map="softmax" if softmax else None,
        block=not spectrum_only,
    )
    _print(answer)
    for file in files:
        _save(answer.block, file)
        click.echo(f"saved {file}")


def _check_file(file: Path, spectrum_only: bool) -> None:
    if file.suffix not in (".npz", ".png"):
        raise UsageError(f"--save {file}: give a name that ends in .npz (the numbers) or .png (a picture).")
    if file.suffix == ".png" and spectrum_only:
        raise UsageError(f"--save {file}: there is no block to draw with --spectrum-only; save a .npz.")
    if not file.parent.is_dir():
        raise UsageError(f"--save {file}: there is no folder {file.parent}.")


def _print(answer: Answer) -> None:
    from gradlab.launch.terminal import console

    block = answer.block
    size = f"{len(block.row_names)} x {len(block.col_names)}"
    click.echo(f"d {block.of} / d {block.wrt} of {answer.subject}")
    click.echo(f"{size}, engine {block.engine}, audit error {block.audit_error:.1e}")
    for note in block.notes:
        click.echo(f"note: {note}")
    shown = [name for name in _FIRST if name in block.summaries]
    click.echo("  ".join(f"{name} {block.summaries[name]:.4g}" for name in shown))
    sigma = block.singular_values if block.singular_values.ndim == 1 else block.singular_values.mean(0)
    if len(sigma):
        more = " ..." if len(sigma) > _MOST_SHOWN else ""
        click.echo("singular values " + " ".join(f"{value:.4g}" for value in sigma[:_MOST_SHOWN]) + more)
    if block.values.size:
        console().print(_table(block))


def _table(block: JacobianBlock) -> object:
    """The first rows and columns, and how many more there are."""
    from gradlab.launch.terminal import plain_table

    rows, cols = (min(size, _MOST_SHOWN) for size in block.values.shape)
    more = [f"+ {block.values.shape[1] - cols}"] if cols < block.values.shape[1] else []
    names = [*block.col_names[:cols], *more]
    table = plain_table([f"{block.of} \\ {block.wrt}", *names], right=names)
    for name, values in zip(block.row_names[:rows], block.values[:rows, :cols], strict=True):
        table.add_row(name, *(f"{value:.4g}" for value in values), *(["..."] if more else []))
    if rows < block.values.shape[0]:
        table.add_row(f"+ {block.values.shape[0] - rows}", *(["..."] * len(names)))
    return table


def _save(block: JacobianBlock, file: Path) -> None:
    import numpy as np

    from gradlab.events.image import diverging, png

    try:
        if file.suffix == ".png":
            file.write_bytes(png(diverging(block.values)))
        else:
            np.savez_compressed(
                file,
                values=block.values,
                row_names=np.array(block.row_names),
                col_names=np.array(block.col_names),
                singular_values=block.singular_values,
                of=block.of,
                wrt=block.wrt,
                engine=block.engine,
                audit_error=block.audit_error,
                notes=np.array(block.notes, dtype=str),
                summary_names=np.array(list(block.summaries)),
                summary_values=np.array(list(block.summaries.values())),
            )
    except OSError as error:
        raise MachineError(f"cannot write {file}: {error.strerror}.") from error
