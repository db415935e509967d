"""The public surface is what it says it is."""

from __future__ import annotations

import inspect

import gradlab


def test_every_public_name_is_importable_and_documented() -> None:
    assert list(gradlab.__all__) == sorted(gradlab.__all__)
    for name in gradlab.__all__:
        assert inspect.getdoc(getattr(gradlab, name)), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(gradlab, "nonsense")


def test_a_public_name_is_never_also_a_module() -> None:
    for name in gradlab.__all__:
        assert not inspect.ismodule(getattr(gradlab, name)), name
