"""Mutators change a training script as they say, and give only scripts that compile. No training is run."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "benchmarks" / "diagnosis"
sys.path.insert(0, str(HERE))
mutate = importlib.import_module("mutate")

SEQUENCE = """
import torch
from torch import nn
from torch.nn import functional as F
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(100):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
"""
NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 1)
    def forward(self, x):
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(self.drop(x))
criterion = nn.MSELoss()
model = Net()
optimizer = torch.optim.Adam(model.parameters(), 0.001)
for step in range(100):
    for p in model.parameters():
        p.grad = None
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
"""
ACCUMULATION = SEQUENCE.replace("    optimizer.step()\n", "").replace("    loss.backward()\n", "") + (
    "    for _ in range(4):\n        loss = F.cross_entropy(model(x), y)\n        (loss / 4).backward()\n"
    "    optimizer.step()\n"
)
LBFGS = """
import torch
from torch import nn
from torch.nn import functional as F
model = nn.Linear(8, 1)
optimizer = torch.optim.LBFGS(model.parameters(), lr=1)
def closure():
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    loss.backward()
    return loss
for step in range(30):
    loss = optimizer.step(closure)
"""

GROUPS = "[{'params': model.stem.parameters()}, {'params': model.head.parameters()}]"
FIRST, THEN = "model = nn.Sequential(nn.Linear(8, 16), ", "nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))"
CASES = [
    ("drop_zero_grad", SEQUENCE, ["    optimizer.zero_grad()"], [], ""),
    ("drop_zero_grad", NET, ["    for p in model.parameters():", "        p.grad = None"], [], ""),
    ("drop_step", SEQUENCE, ["    optimizer.step()"], [], ""),
    ("drop_step", LBFGS, ["    loss = optimizer.step(closure)"], ["    loss = closure()"], ""),
    (
        "drop_parameter_group",
        SEQUENCE,
        ["optimizer = torch.optim.SGD(model.parameters(), lr=0.01)"],
        ["optimizer = torch.optim.SGD(model[:-1].parameters(), lr=0.01)"],
        "4",
    ),
    (
        "drop_parameter_group",
        NET.replace("model.parameters(), 0.001", GROUPS),
        [f"optimizer = torch.optim.Adam({GROUPS})"],
        ["optimizer = torch.optim.Adam([{'params': model.stem.parameters()}])"],
        "head",
    ),
    (
        "plain_list",
        NET,
        ["        self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])"],
        ["        self.blocks = [nn.Linear(16, 16), nn.Linear(16, 16)]"],
        "blocks",
    ),
    (
        "detach_middle",
        NET,
        ["        x = self.norm(self.stem(x))"],
        ["        x = self.norm(self.stem(x).detach())"],
        "stem",
    ),
    (
        "detach_middle",
        SEQUENCE,
        [FIRST + THEN],
        [
            "class Detach(torch.nn.Module):",
            "    def forward(self, x):",
            "        return x.detach()",
            FIRST + "Detach(), " + THEN,
        ],
        "0",
    ),
    ("frozen_random", SEQUENCE, [], ["model[2].requires_grad_(False)"], "2"),
    ("frozen_random", NET, [], ["model.blocks[0].requires_grad_(False)"], "blocks.0"),
    ("retain_losses", SEQUENCE, [], ["kept = []", "    kept.append(loss)"], ""),
    (
        "two_optimizers",
        NET,
        [],
        ["second_optimizer = torch.optim.SGD(model.head.parameters(), lr=0.01)", "    second_optimizer.step()"],
        "head",
    ),
    (
        "add_softmax",
        SEQUENCE,
        ["    loss = F.cross_entropy(model(x), y)"],
        ["    loss = F.cross_entropy(torch.softmax(model(x), dim=1), y)"],
        "",
    ),
    ("negate_loss", SEQUENCE, ["    loss.backward()"], ["    (-loss).backward()"], ""),
    ("negate_loss", ACCUMULATION, ["        (loss / 4).backward()"], ["        (-(loss / 4)).backward()"], ""),
    ("leaf_loss", NET, [], ["    loss = torch.tensor(loss.item(), requires_grad=True)"], ""),
    ("no_average", ACCUMULATION, ["        (loss / 4).backward()"], ["        loss.backward()"], ""),
    ("eval_mode", NET, [], ["model.eval()"], "norm"),
    (
        "dropout_up",
        NET,
        ["        self.drop = nn.Dropout(0.1)"],
        ["        self.drop = nn.Dropout(0.95)"],
        "drop",
    ),
    (
        "lr_times_100",
        SEQUENCE,
        ["optimizer = torch.optim.SGD(model.parameters(), lr=0.01)"],
        ["optimizer = torch.optim.SGD(model.parameters(), lr=1.0)"],
        "",
    ),
    (
        "lr_times_1000",
        NET,
        ["optimizer = torch.optim.Adam(model.parameters(), 0.001)"],
        ["optimizer = torch.optim.Adam(model.parameters(), 1.0)"],
        "",
    ),
    (
        "lr_div_1000",
        SEQUENCE.replace("lr=0.01", "lr=rate"),
        ["optimizer = torch.optim.SGD(model.parameters(), lr=rate)"],
        ["optimizer = torch.optim.SGD(model.parameters(), lr=0.001 * rate)"],
        "",
    ),
    (
        "decay_large",
        SEQUENCE,
        ["optimizer = torch.optim.SGD(model.parameters(), lr=0.01)"],
        ["optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=10.0)"],
        "",
    ),
    ("clip_tiny", SEQUENCE, [], ["    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.001)"], ""),
    ("loss_tiny", NET, ["    loss.backward()"], ["    (loss * 1e-09).backward()"], ""),
    (
        "bias_minus",
        SEQUENCE,
        [],
        [f"torch.nn.init.constant_(model[{i}].bias, -10.0)" for i in (0, 2)],
        "0",
    ),
    (
        "zero_init",
        SEQUENCE,
        [],
        [f"torch.nn.init.zeros_(model[{i}].{name})" for i in (0, 2) for name in ("bias", "weight")],
        "0",
    ),
    (
        "constant_init",
        SEQUENCE,
        [],
        [
            "torch.nn.init.constant_(model[0].weight, 0.05)",
            "torch.nn.init.zeros_(model[0].bias)",
            "torch.nn.init.constant_(model[2].weight, 0.05)",
        ],
        "0",
    ),
    (
        "input_times_100",
        SEQUENCE,
        ["    loss = F.cross_entropy(model(x), y)"],
        ["    loss = F.cross_entropy(model(100 * x), y)"],
        "",
    ),
    ("target_shift", NET, ["    loss = criterion(model(x), y)"], ["    loss = criterion(model(x), y + 1000)"], ""),
    (
        "nan_input",
        NET,
        ["    loss = criterion(model(x), y)"],
        [
            "def damaged(x, step):",
            '    """The batch, one element of which is not a number from step 20 on."""',
            "    if step < 20:",
            "        return x",
            "    x = x.clone(memory_format=torch.contiguous_format)",
            "    x.view(-1)[0] = float('nan')",
            "    return x",
            "    loss = criterion(model(damaged(x, step)), y)",
        ],
        "",
    ),
    (
        "shuffle_labels",
        SEQUENCE,
        ["    loss = F.cross_entropy(model(x), y)"],
        ["    loss = F.cross_entropy(model(x), y[torch.randperm(len(y))])"],
        "",
    ),
]
NOT_HERE = [
    ("negate_loss", SEQUENCE.replace("F.cross_entropy(model(x), y)", "-model(x).mean()")),  # a minus may be right
    ("lr_times_100", LBFGS),  # the line search mends the rate
    ("loss_tiny", SEQUENCE),  # SGD has no eps
    ("eval_mode", SEQUENCE),  # without batch norm
    ("no_average", SEQUENCE),
    ("add_softmax", NET),
    ("shuffle_labels", NET),
    ("plain_list", SEQUENCE),
    ("input_times_100", NET),  # batch norm takes the scale out again
    (
        "dropout_up",
        NET.replace("nn.Dropout(0.1)", "nn.Identity()").replace("nn.Linear(8, 16)", "nn.Dropout(0.1)"),
    ),  # hides inputs
    ("nan_input", SEQUENCE.replace("nn.Linear(8, 16)", "nn.Embedding(8, 16)")),  # ids are whole numbers
]


def lines(source: str) -> list[str]:
    return [line for line in ast.unparse(ast.parse(source)).splitlines() if line]


@pytest.mark.parametrize(("name", "source", "removed", "added", "place"), CASES)
def test_a_mutator_changes_these_lines(name: str, source: str, removed: list, added: list, place: str) -> None:
    mutant = mutate.mutators()[name].apply(ast.parse(source))
    before, after = lines(source), lines(mutant.source)[1:]
    assert [line for line in before if line not in after] == removed
    assert sorted(line for line in after if line not in before) == sorted(added)
    assert mutant.place == place
    assert mutant.code == mutate.mutators()[name].code


def test_every_mutator_has_a_case():
    assert {case[0] for case in CASES} == set(mutate.mutators())


@pytest.mark.parametrize(("name", "source"), NOT_HERE)
def test_a_script_without_a_place_for_the_fault_gives_no_mutant(name: str, source: str) -> None:
    assert mutate.mutators()[name].apply(ast.parse(source)) is None


def test_the_names_of_two_models_are_not_known():
    second = "\nother = nn.Linear(8, 4)\nsecond = torch.optim.SGD(other.parameters())\nfor step"
    two = SEQUENCE.replace("\nfor step", second)
    assert mutate.mutators()["drop_parameter_group"].apply(ast.parse(two)).place is None


def test_the_tree_given_is_left_as_it_is():
    tree = ast.parse(SEQUENCE)
    for one in mutate.mutators().values():
        one.apply(tree)
    assert ast.unparse(tree) == ast.unparse(ast.parse(SEQUENCE))


@pytest.mark.parametrize("name", list(mutate.mutators()))
def test_mutants_of_the_healthy_scripts_compile(name: str) -> None:
    number = 0
    for script in mutate.HEALTHY.glob("*.py"):
        source = script.read_text()
        if mutant := mutate.mutators()[name].apply(ast.parse(source)):
            compile(mutant.source, script.name, "exec")
            assert lines(mutant.source)[1:] != lines(source)[1:]
            number += 1
    assert number


def test_the_command_line_lists_writes_and_says_where_there_is_no_place(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, HERE / "mutate.py", *words], capture_output=True, text=True)

    assert {line.split()[0] for line in run("--list").stdout.splitlines()} == set(mutate.mutators())
    written = run("healthy/gru.py", "--mutator", "drop_zero_grad", "--out", str(tmp_path / "mutant.py"))
    assert (written.returncode, written.stderr) == (0, "GL103 at ''\n")
    assert "zero_grad()" not in (tmp_path / "mutant.py").read_text()
    refused = run("healthy/gru.py", "--mutator", "add_softmax")
    assert (refused.returncode, refused.stderr) == (1, "gru.py has no place for add_softmax\n")
