"""MAML in PyTorch: inner steps, and the meta-gradient by a loop over tasks and by `torch.func`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_peers import Params


def learn(
    loss: Callable[[Params, Tensor, Tensor], Tensor], params: Params, support: tuple[Tensor, Tensor], rate: float,
    steps: int, *, names: Sequence[str] = (), scales: Params | None = None, create_graph: bool = True,
    functional: bool = False,
) -> Params:  # fmt: skip
    """Inner steps of gradient descent on the parameters `names` (all, if none), each at `rate` times its scale.

    `torch.autograd.grad(..., create_graph=True)`, as learn2learn and higher do, or `torch.func.grad`.
    """
    names = list(names or params)
    for _ in range(steps):
        part = {name: params[name] for name in names}
        if functional:
            grads = torch.func.grad(lambda part, rest=params: loss({**rest, **part}, *support))(part)
        else:
            value = loss(params, *support)
            found = torch.autograd.grad(value, list(part.values()), create_graph=create_graph)
            grads = dict(zip(names, found, strict=True))
        if scales:
            grads = {name: scales[name] * grad for name, grad in grads.items()}
        params = {**params, **{name: part[name] - rate * grads[name] for name in names}}
    return params


def meta_gradient_loop(
    loss: Callable[[Params, Tensor, Tensor], Tensor], params: Params, episodes: Sequence[Any], rate: float, steps: int,
    *, names: Sequence[str] = (), scales: Params | None = None, first_order: bool = False,
) -> tuple[Tensor, Params, Params]:  # fmt: skip
    """Mean query loss and its gradient: a loop over tasks, gradients added up task by task.

    Args:
      loss: `(params, x, y) -> scalar`.
      params: theta.
      episodes: `((x, y), (x, y))`, support and query, one per task.
      rate: inner rate.
      steps: inner steps.
      names: adapted parameters; all, if none.
      scales: learned factors of the rate, by parameter (Meta-SGD).
      first_order: leave second derivatives out.

    Returns:
      The loss, and the gradients by `params` and by `scales`.
    """
    leaves = [*params.values(), *(scales or {}).values()]
    total, value = [torch.zeros_like(leaf) for leaf in leaves], leaves[0].new_zeros(())
    for support, query in episodes:
        adapted = learn(loss, params, support, rate, steps, names=names, scales=scales, create_graph=not first_order)
        one = loss(adapted, *query) / len(episodes)
        for added, grad in zip(total, torch.autograd.grad(one, leaves), strict=True):
            added += grad
        value = value + one.detach()
    return value, dict(zip(params, total, strict=False)), dict(zip(scales or {}, total[len(params) :], strict=True))


def meta_gradient_func(
    loss: Callable[[Params, Tensor, Tensor], Tensor], params: Params, episodes: Any, rate: float, steps: int,
    *, names: Sequence[str] = (), scales: Params | None = None,
) -> tuple[Tensor, Params, Params]:  # fmt: skip
    """As `meta_gradient_loop`, but by `torch.func`: vmap over stacked episodes, grad of grad."""

    def mean(params: Params, scales: Params) -> Tensor:
        def one(support: Any, query: Any) -> Tensor:
            return loss(learn(loss, params, support, rate, steps, names=names, scales=scales, functional=True), *query)

        return torch.func.vmap(one)(*episodes).mean()

    params, scales = ({name: leaf.detach() for name, leaf in (tree or {}).items()} for tree in (params, scales))
    (by_params, by_scales), value = torch.func.grad_and_value(mean, argnums=(0, 1))(params, scales)
    return value, by_params, by_scales
