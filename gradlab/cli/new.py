"""`gradlab new`: start from an experiment that ships with gradlab."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from gradlab.errors import UsageError, did_you_mean


@click.command("new")
@click.argument("template", required=False)
@click.argument("path", type=click.Path(path_type=Path), required=False)
def new_command(template: str | None, path: Path | None) -> None:
    """Copy a shipped experiment, or list them.

    PATH is TEMPLATE.yaml here where left out.
    """
    known = templates()
    if template is None:
        width = max(map(len, known))
        for name, file in known.items():
            click.echo(f"{name:<{width}}  {first_comment(file)}")
        click.echo("\ngradlab new NAME [PATH] copies one.")
        return
    if template not in known:
        raise UsageError(f"no template {template!r}.{did_you_mean(template, known)} There are {', '.join(known)}.")
    path = path or Path(f"{template}.yaml")
    if path.is_dir():
        path = path / f"{template}.yaml"
    try:
        with path.open("x", encoding="utf-8") as copy:
            copy.write(known[template].read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(f"{path} exists already; choose another PATH.") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}.") from None
    click.echo(f"{path}: gradlab run {path}")


def templates() -> dict[str, Traversable]:
    """Name -> file of every shipped experiment. `templates` is the repository's folder `experiments`."""
    folder = files("gradlab.cli") / "templates"
    found = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def first_comment(file: Traversable) -> str:
    """The first comment line, which says what the experiment shows."""
    line = file.read_text(encoding="utf-8").split("\n", 1)[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""
