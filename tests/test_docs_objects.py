"""The page on what people hold: its Python runs, and what it asserts is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_readme import Net

import gradlab

PAGE = (Path(__file__).parent.parent / "docs" / "objects.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_python_runs(block: str) -> None:
    model = Net()
    names = {
        "F": F,
        "gradlab": gradlab,
        "model": model,
        "loader": [(torch.randn(4, 8), torch.randint(0, 10, (4,))) for _ in range(3)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(compile(block, "objects.md", "exec"), names)


def test_every_name_of_gradlab_on_the_page_is_public() -> None:
    for name in re.findall(r"gradlab\.(\w+)", PAGE):
        assert hasattr(gradlab, name), name
