"""The page on diagnosis: its Python runs, its rule finds what it says, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_readme import Net

import gradlab
from gradlab.diagnose import manual, registry

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "diagnosis.md").read_text(encoding="utf-8")


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules made here are gone afterwards."""
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_python_runs(block: str, own_rules: None) -> None:
    torch.manual_seed(0)
    model = Net()
    names = {
        "F": F,
        "torch": torch,
        "gradlab": gradlab,
        "model": model,
        "loader": [(torch.randn(4, 8), torch.randint(0, 10, (4,))) for _ in range(6)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-6),
    }
    exec(compile(block, "diagnosis.md", "exec"), names)
    if "found" in names:
        (found,) = names["found"]
        assert found.site == "head.weight" and found.message.startswith("head.weight has a norm of ")
        assert any(one.code == "MY001" for one in manual.entries())


def test_every_name_of_gradlab_on_the_page_is_public() -> None:
    for name in re.findall(r"gradlab\.(\w+)[(.]", PAGE):
        assert name == "rules" or hasattr(gradlab, name), name


@pytest.mark.parametrize("page", ["diagnosis.md", "objects.md", "metrics.md"])
def test_links_lead_to_pages_that_are_there(page: str) -> None:
    for target in re.findall(r"\]\(([\w/.-]+\.md)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / target).is_file(), target
