"""The results of several models of one process."""

from __future__ import annotations

from gradlab.attach.results import ModelResults, total_steps


def test_models_that_train_together_step_together() -> None:
    results = [
        ModelResults(label="G", steps=40, layers=(), findings=(), began=0.0, ended=9.0),
        ModelResults(label="D", steps=20, layers=(), findings=(), began=1.0, ended=8.0),
        ModelResults(label="probe", steps=5, layers=(), findings=(), began=9.5, ended=9.9),
    ]
    assert total_steps(results) == 45
