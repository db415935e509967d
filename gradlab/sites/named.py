"""`gradlab.tap`: a site that the user names in the code of a model, where no module's border lies.

Belongs here: the function, and the list of its listeners. Does not: what these do with the tensor (`forward`,
`taps.engine`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from gradlab.arguments import NAME, check_arguments
from gradlab.errors import TapError
from gradlab.torch_arguments import TENSOR


class NamedTensorListener(Protocol):
    """An object that is called with each tensor named by hand."""

    def named(self, name: str, value: Tensor) -> Tensor:
        """Take note of a tensor named with `gradlab.tap`; the returned tensor goes on in its place."""


listeners: list[NamedTensorListener] = []
"""Whoever `gradlab.tap` calls. Global, since the code of a model knows no monitor: a listener puts itself in, and takes
itself out when it closes."""


def tap(name: str, value: Tensor) -> Tensor:
    """Name a tensor by hand; it becomes the site `name`. The identity when nobody watches (about 0.1 microseconds).

    Args:
        name: the site's name, unique in one forward; a second use in the same forward is `name#2`.
        value: any tensor.
    Returns:
        `value` itself.
    """
    if not torch.compiler.is_compiling():
        if type(name) is not str or not isinstance(value, Tensor):
            check_arguments("tap()", {"name": NAME, "value": TENSOR}, {"name": name, "value": value}, TapError)
        for listener in listeners:
            value = listener.named(name, value)
    return value
