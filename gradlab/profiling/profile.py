"""`gradlab.profile`: profile windows in a loop written by hand, as one `with`.

Belongs here: the public function and its arguments. Does not: the object that it returns (profiler.py).
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from gradlab.arguments import FLAG, PATH, check_arguments, named_options, optional, whole
from gradlab.distributed import rank_in_group, world_size
from gradlab.errors import ProfileError
from gradlab.profiling.options import Profile, Trigger
from gradlab.profiling.profiler import Profiler
from gradlab.profiling.window import UNTIL_CLOSED
from gradlab.torch_arguments import MODEL, OPTIMIZER


@named_options
def profile(
    logdir: Path | str,
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    *,
    wait: int = 0,
    warmup: int = 0,
    active: int | None = None,
    repeat: int | None = None,
    every: int | None = None,
    trigger: Trigger | None = None,
    memory: bool = True,
    shapes: bool = False,
    stack: bool = False,
    raw: bool = False,
    strict: bool = False,
) -> Profiler:
    """Profile what runs inside a `with`, into `<logdir>/profile/`, for TensorBoard's PyTorch Profiler tab.

        with gradlab.profile("runs/mlp", model, wait=5, warmup=2, active=3) as p:
            for batch in loader:
                train(batch)
                p.step()

    Without `active` everything is recorded until the end; without a call of `step` it counts as one step.
    The other arguments are those of `Profile` and `Profiler`.
    """
    given = {"logdir": logdir, "model": model, "optimizer": optimizer, "active": active, "strict": strict}
    check_arguments("profile()", _ARGUMENTS, given, ProfileError)
    options = Profile(
        wait=wait,
        warmup=warmup,
        active=UNTIL_CLOSED if active is None else active,
        repeat=repeat,
        every=every,
        trigger=trigger,
        memory=memory,
        shapes=shapes,
        stack=stack,
        raw=raw,
    )
    optimizers = () if optimizer is None else (optimizer,)
    return Profiler(
        options,
        Path(logdir) / "profile",
        model,
        optimizers=lambda: optimizers,
        rank=rank_in_group(),
        world_size=world_size(),
        strict=strict,
    )


_ARGUMENTS = {
    "logdir": PATH,
    "model": optional(MODEL),
    "optimizer": optional(OPTIMIZER),
    "active": optional(whole(1)),
    "strict": FLAG,
}
