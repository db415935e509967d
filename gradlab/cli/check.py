"""`gradlab check`: everything that `gradlab run` checks, and no step."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("check")
@click.argument("experiment", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--sites", is_flag=True, help="List every site that a tap may name, in forward order.")
def check_command(experiment: Path, overrides: tuple[str, ...], sites: bool) -> None:
    """Check an experiment and run no step.

    The file, the classes and their arguments, this machine, and the taps against the built model.
    """
    report(experiment, overrides, list_sites=sites)


def report(experiment: Path, overrides: tuple[str, ...], *, list_sites: bool = False) -> None:
    """Check and say in a few lines what would be run."""
    from gradlab.launch.prepare import prepare

    prepared = prepare(experiment, overrides)
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    click.echo(f"{experiment} is in order: {prepared.loaded.experiment.name}")
    click.echo(f"  model  {type(prepared.model).__name__}, {parameters:,} parameters")
    click.echo(f"  data   {type(prepared.data).__name__ if prepared.data is not None else 'the model brings its own'}")
    click.echo(f"  taps   {len(prepared.taps)} over {len(prepared.sites)} sites")
    if list_sites:
        for site in prepared.sites:
            click.echo(f"    {site.name:<40} {site.kind:<9} {list(site.shape)} {site.dtype}  {site.place}".rstrip())
