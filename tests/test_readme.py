"""What the README says is so: its Python runs, its table is that of the experiments, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

from gradlab.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


class Net(nn.Module):
    """A model with the sites that the README's second example names."""

    class Layer(nn.Module):
        """Linear and functional relu."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.linear(x))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Layer() for _ in range(2))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{n}" for n in range(len(BLOCKS))])
def test_the_python_in_the_readme_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Net()
    loader = [(torch.randn(4, 8), torch.randint(0, 10, (4,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exec(
        compile(block, "README.md", "exec"),
        {"F": F, "torch": torch, "model": model, "loader": loader, "optimizer": optimizer, "x": torch.randn(4, 8)},
    )


def experiments_table() -> str:
    """The table of experiments, made from the first comment line of each file."""
    rows = ["| experiment | what it shows |", "|---|---|"]
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        rows.append(f"| `experiments/{path.name}` | {path.read_text().splitlines()[0].lstrip('# ')} |")
    return "\n".join(rows)


def test_the_table_of_experiments_is_made_from_their_first_lines() -> None:
    inside = re.search(r"<!-- experiments -->\n(.*?)\n<!-- /experiments -->", README, re.DOTALL)
    assert inside is not None and inside.group(1) == experiments_table(), f"it should read:\n{experiments_table()}"


def test_the_pictures_of_the_readme_are_there() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).stat().st_size > 10_000


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|^)gradlab ([a-z]+)", README, re.M))))
def test_the_commands_of_the_readme_exist(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0, result.output
