"""`resolved()` writes an experiment that loads back equal, whatever is in it."""

# ruff: noqa: E501  a table of words

from __future__ import annotations

import dataclasses
import random

from gradlab.config import load

FULL = """\
name: digits
seed: 7
model: mlp
data: {class_path: digits, init_args: {batch_size: 64}}
optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-3, betas: [0.9, 0.99]}}
trainer: {max_epochs: 5, precision: 32-true}
taps:
  - {at: "*", of: weight_grad}
  - {at: ["*/relu*", "!layers.*"], of: [output, output_grad], stats: [norm, zeros], every: 10, keep: true}
jacobians: [{of: output, wrt: input, rows: [1, 2]}]
profile: {wait: 2}
resources: {gpus: 1}
sweep: {over: {seed: [1, 2], optimizer.init_args.lr: {log: [1e-4, 1e-1]}}, search: random, trials: 3}
"""

WORDS = [
    "", " ", "no", "true", "null", "~", "1e-3", "010", "0x1F", "1:30", "<<", "*", "!x", "&a", "- a", "a: b", "a #b", "#",
    "'", '"', "\\", "a\nb", "\n", "tab\there", "\x07", "\x85", "\u2028", "é漢😀", "{", "[1]", "%", "@", "`", "=", "2026-01-01",
    " lead", "trail ", "---", "...", "?", "|", ">", ".inf", "x" * 300, "a b " * 60,
]  # fmt: skip
NUMBERS = [0, -1, 10**30, 0.1, 1e-300, 1e22, -0.0, 123456789.125, float("inf"), float("-inf"), True, False, None]


def value(choose: random.Random, depth: int = 0):
    kind = choose.randrange(4 if depth < 3 else 2)
    if kind == 0:
        return choose.choice(WORDS)
    if kind == 1:
        return choose.choice(NUMBERS)
    if kind == 2:
        return [value(choose, depth + 1) for _ in range(choose.randrange(4))]
    return {choose.choice([*WORDS, *NUMBERS]): value(choose, depth + 1) for _ in range(choose.randrange(4))}


def reloaded(experiment, folder):
    (folder / "resolved.yaml").write_text(experiment.resolved())
    return load(folder / "resolved.yaml", deep=False)


def test_every_value_is_written_and_loads_back_equal(loaded, folder):
    first = loaded(FULL, "seed=9", "trainer.max_epochs=6")
    second = reloaded(first, folder)
    assert second.experiment == first.experiment
    assert second.resolved() == first.resolved()
    lines = first.resolved().splitlines()
    for line in ("seed: 9", "  class_path: gradlab.models.MLP", "  stage: final", "optimizer:"):
        assert line in lines
    assert "sweep: null" in loaded("name: x\nmodel: mlp\n").resolved().splitlines()


def test_the_smallest_experiment_loads_back_equal(loaded, folder):
    first = loaded("name: x\nmodel: mlp\n")
    assert reloaded(first, folder).experiment == first.experiment
    written = [line.split(":")[0] for line in first.resolved().splitlines() if line[0] not in " -"]
    assert written == [field.name for field in dataclasses.fields(first.experiment)]


def test_any_value_of_an_argument_survives_with_its_type(loaded, folder):
    choose = random.Random(0)
    base = loaded("name: x\nmodel: mlp\n")
    for _ in range(150):
        arguments = {f"a{i}": value(choose) for i in range(5)}
        model = dataclasses.replace(base.experiment.model, init_args=arguments)
        first = dataclasses.replace(base, experiment=dataclasses.replace(base.experiment, model=model))
        second = reloaded(first, folder)
        assert second.experiment.model.init_args == arguments
        assert repr(second.experiment.model.init_args) == repr(arguments)


def test_the_source_is_kept_as_written(loaded):
    assert loaded(FULL, "seed=9").source == FULL.encode()
