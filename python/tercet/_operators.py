"""What PyTorch needs of the operators beside their code: shapes for tracing, and gradients.

Each forward operator also returns the gradients that are wanted, for an upstream gradient of 1 and in the type of arithmetic,
where that is possible ("ready" below); what is left to backward is a product. Where it is not, the gradient is an empty tensor
of one axis, and the operator's own ``.._backward`` computes it.

Eager calls that will have a gradient go through a ``torch.autograd.Function`` of the same two passes instead of through the
gradient that is registered with the operator, whose Python takes several times as long as a small batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library as _library  # the operators exist once the library is loaded

STATS = 6
"""The 8-byte numbers of a mined loss's statistics; see :class:`tercet.Stats`."""

NEAR_ROWS, NEAR_COLUMNS = 64, 256
"""The least rows and the columns of a tile of distances on the CPU, a byte of ``pairwise_distance``'s second result each."""

PAIRED = {"triplet_margin": 3, "contrastive": 2}
"""The paired losses, and how many matrices each takes."""

MINED = ("batch_all", "batch_hard", "batch_semi_hard", "batch_negative", "batch_contrastive")

_MINED_TENSORS = 7
"""Arguments of a mined loss before ``wants``: two of the batch, four of the reference set, and the step."""


class _Delayed(torch.autograd.Function):
    """A gradient that may be used, but not differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *_sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(_TWICE)


_TWICE = "tercet: the gradient of a loss cannot be differentiated once more"


def _is_one(upstream: Tensor) -> bool:
    # While a graph is traced the tensor is of another type, and has no number yet. A CUDA device is not waited for.
    return type(upstream) is Tensor and upstream.device.type == "cpu" and upstream.dim() == 0 and upstream.item() == 1.0


_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
"""Whether the graph that runs backward may do so again."""


def _give(
    grads: list[Tensor | None],
    places: Sequence[int],
    ready: Sequence[Tensor],
    upstream: Tensor,
    sources: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """Puts the gradients that are ready, times the upstream gradient, in their places: one product, one rounding.
    ``sources``: what each is with respect to."""
    # A gradient that is handed over itself may be changed by whoever gets it, so only where it is not needed again.
    is_given, second = _is_one(upstream) and not _keeps_graph(), torch.is_grad_enabled()
    for place, grad, source in zip(places, ready, sources):
        if not is_given or grad.dtype is not source.dtype:
            grad = (grad * upstream).to(source.dtype)
        # With `create_graph` the gradient is part of a graph, too.
        grads[place] = _Delayed.apply(grad, source, upstream) if second else grad
    return tuple(grads)


_is_transformed = torch._C._are_functorch_transforms_active
"""Whether a transform of ``torch.func`` is at work, which does not take the gradients that are registered."""


_below_autograd = torch._C._AutoDispatchBelowAutograd


def _set_up(save: Callable[..., None]) -> Callable[..., None]:
    """The context of an operator whose first result alone has a gradient; ``save(ctx, inputs, output)`` keeps what its backward
    pass takes."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        save(ctx, inputs, output)

    return setup_context


def _calling(
    operator: Any, leading: int, outputs: int, save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The operator as Python code calls it, with the first ``outputs`` of its results or more. Those arguments that may have a
    gradient are among the first ``leading``."""

    def eager(ctx: Any, *given: Any) -> Any:
        arguments = (*given[:-1], *given[-1])
        # Past the gradient that is registered, which would find that none is wanted here, in Python.
        with _below_autograd():
            output = operator(*arguments)
        ctx.set_materialize_grads(False)
        save(ctx, arguments, output)
        if outputs > 1:
            ctx.mark_non_differentiable(*output[1:outputs])
        return output[:outputs]

    def function(**passes: Any) -> Any:
        name = operator._schema.name.replace("::", "_")
        methods = {key: staticmethod(value) for key, value in passes.items()}
        return type(name, (torch.autograd.Function,), methods)

    # PyTorch looks at each argument of a function in Python: what is no leading one comes in one tuple.
    of_eager = function(forward=eager, backward=lambda ctx, *upstream: (*backward(ctx, *upstream)[:leading], None))
    # PyTorch's `apply` without the part of it that is in Python, which is for transforms.
    apply = super(torch.autograd.Function, of_eager).apply
    of_transforms = function(
        forward=lambda *arguments: operator(*arguments), setup_context=_set_up(save), backward=backward
    )

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return operator(*arguments)
        if _is_transformed():
            return of_transforms.apply(*arguments)
        return apply(*arguments[:leading], arguments[leading:])

    return call


calls: dict[str, Callable[..., Any]] = {}
"""The operators by name, as eager code calls them: with the arguments of the schema, in its order."""


def _loss_dtype(embeddings: Tensor) -> torch.dtype:
    return torch.float64 if embeddings.dtype is torch.float64 else torch.float32


def _loss_shape(embeddings: Tensor, reduction: str) -> Sequence[int]:
    return (embeddings.shape[0],) if reduction == "none" else ()


def _nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    return like.new_empty((0,), dtype=dtype)


def _index(operator: Any, name: str) -> int:
    return [argument.name for argument in operator._schema.arguments].index(name)


def _register_autograd(name: str, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    torch.library.register_autograd(f"tercet::{name}", backward, setup_context=_set_up(save))


def _refuse(name: str) -> None:
    """Makes backward through an operator an error: of the operators that are gradients."""

    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(_TWICE)

    torch.library.register_autograd(f"tercet::{name}", backward)


def _mined(name: str) -> None:
    forward = getattr(torch.ops.tercet, name).default
    gradients = getattr(torch.ops.tercet, f"{name}_backward").default
    wants_at, reduction_at, count = _MINED_TENSORS, _index(forward, "reduction"), len(forward._schema.arguments)

    @torch.library.register_fake(f"tercet::{name}")
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        embeddings, reference, wants = arguments[0], arguments[2], arguments[wants_at]
        reduction, dtype = arguments[reduction_at], _loss_dtype(embeddings)
        # On a CUDA device the kernels write gradients of the rows' own type.
        at_once = reduction != "none" and (embeddings.device.type == "cpu" or embeddings.dtype is torch.float32)
        loss = embeddings.new_empty(_loss_shape(embeddings, reduction), dtype=dtype)
        stats = embeddings.new_empty((STATS,), dtype=torch.int64)
        ready = [
            rows.new_empty(rows.shape, dtype=dtype)
            if rows is not None and at_once and wants >> which & 1
            else _nothing(embeddings, dtype)
            for which, rows in enumerate((embeddings, reference))
        ]
        return loss, stats, *ready

    @torch.library.register_fake(f"tercet::{name}_backward")
    def _(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        embeddings, wants = arguments[0], arguments[wants_at]
        return tuple(
            rows.new_empty(rows.shape)
            if rows is not None and wants >> which & 1
            else _nothing(embeddings, embeddings.dtype)
            for which, rows in enumerate((embeddings, arguments[2]))
        )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        needs = ctx.needs_input_grad  # a tuple that is made at each access
        needed = [which for which in (0, 1) if needs[2 * which]]
        ready = [output[2 + which] for which in needed]
        ctx.places = [2 * which for which in needed]
        ctx.mines_again = any(grad.dim() != 2 for grad in ready)
        if ctx.mines_again:
            ctx.save_for_backward(*inputs[:5], inputs[6])
            ctx.options = inputs[5], inputs[wants_at + 1 :]
        else:
            # The rows are not read again, and may change: backward only asks for their type and, with `create_graph`, for
            # their place in the graph.
            ctx.save_for_backward(*ready)
            ctx.sources = [inputs[place] for place in ctx.places]

    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * count
        if upstream is None:
            return tuple(grads)
        if not ctx.mines_again:
            return _give(grads, ctx.places, ctx.saved_tensors, upstream, ctx.sources)
        *tensors, step = ctx.saved_tensors
        own_offset, options = ctx.options
        wants = sum(1 << place // 2 for place in ctx.places)
        found = gradients(upstream, *tensors, own_offset, step, wants, *options)
        for place in ctx.places:
            grads[place] = found[place // 2]
        return tuple(grads)

    _register_autograd(name, save, backward)
    _refuse(f"{name}_backward")
    calls[name] = _calling(forward, 3, 2, save, backward)


def _paired(name: str, matrices: int) -> None:
    forward = getattr(torch.ops.tercet, name).default
    gradients = getattr(torch.ops.tercet, f"{name}_backward").default
    wants_at, reduction_at, count = (
        _index(forward, "wants"),
        _index(forward, "reduction"),
        len(forward._schema.arguments),
    )

    @torch.library.register_fake(f"tercet::{name}")
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        first, wants, reduction = arguments[0], arguments[wants_at], arguments[reduction_at]
        at_once = reduction != "none" and first.dtype is not torch.float16
        loss = first.new_empty(_loss_shape(first, reduction), dtype=_loss_dtype(first))
        ready = (
            first.new_empty(first.shape) if at_once and wants >> which & 1 else _nothing(first, first.dtype)
            for which in range(matrices)
        )
        return loss, *ready

    @torch.library.register_fake(f"tercet::{name}_backward")
    def _(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        first, wants = arguments[0], arguments[wants_at]
        return tuple(
            first.new_empty(first.shape) if wants >> which & 1 else _nothing(first, first.dtype)
            for which in range(matrices)
        )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        needs = ctx.needs_input_grad
        ctx.places = [which for which in range(matrices) if needs[which]]
        ready = [output[1 + which] for which in ctx.places]
        is_ready = all(grad.dim() == 2 for grad in ready)
        # Times another upstream gradient than 1, rows of 16 bits would be rounded twice: the pass runs again.
        ctx.runs_again = not is_ready or inputs[0].dtype is torch.bfloat16
        ctx.ready = len(ready) if is_ready else 0
        rows = inputs[:wants_at] if ctx.runs_again else ()
        ctx.save_for_backward(*(ready if is_ready else ()), *rows)
        ctx.sources, ctx.options = [inputs[place] for place in ctx.places], inputs[wants_at + 1 :]

    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * count
        if upstream is None:
            return tuple(grads)
        saved = ctx.saved_tensors
        # A gradient of 16 bits that is multiplied by 1 is rounded once.
        if ctx.ready and (not ctx.runs_again or _is_one(upstream)):
            return _give(grads, ctx.places, saved[: ctx.ready], upstream, ctx.sources)
        wants = sum(1 << place for place in ctx.places)
        found = gradients(upstream, *saved[ctx.ready :], wants, *ctx.options)
        for place in ctx.places:
            grads[place] = found[place]
        return tuple(grads)

    _register_autograd(name, save, backward)
    _refuse(f"{name}_backward")
    calls[name] = _calling(forward, matrices, 1, save, backward)


def _pairwise_distance() -> None:
    gradients = torch.ops.tercet.pairwise_distance_backward.default

    @torch.library.register_fake("tercet::pairwise_distance")
    def _(x: Tensor, y: Tensor, *_options: Any) -> tuple[Tensor, Tensor]:
        n, m = x.shape[0], y.shape[0]
        tiles = ((n + NEAR_ROWS - 1) // NEAR_ROWS) * ((m + NEAR_COLUMNS - 1) // NEAR_COLUMNS)
        near = x.new_empty((tiles if x.device.type == "cpu" else 0,), dtype=torch.uint8)
        return x.new_empty((n, m), dtype=_loss_dtype(x)), near

    @torch.library.register_fake("tercet::pairwise_distance_backward")
    def _(
        upstream: Tensor, x: Tensor, y: Tensor, distances: Tensor, near: Tensor, wants: int, *_options: Any
    ) -> tuple[Tensor, ...]:
        return tuple(
            rows.new_empty(rows.shape) if wants >> which & 1 else _nothing(rows, rows.dtype)
            for which, rows in enumerate((x, y))
        )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        distances, near = output
        ctx.save_for_backward(*inputs[:2], distances, near)
        ctx.options = inputs[2:]

    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * 5
        if upstream is None:
            return tuple(grads)
        places = [which for which in range(2) if ctx.needs_input_grad[which]]
        wants = sum(1 << which for which in places)
        found = gradients(upstream, *ctx.saved_tensors, wants, *ctx.options)
        for which in places:
            grads[which] = found[which]
        return tuple(grads)

    _register_autograd("pairwise_distance", save, backward)
    _refuse("pairwise_distance_backward")
    calls["pairwise_distance"] = _calling(torch.ops.tercet.pairwise_distance.default, 2, 2, save, backward)


def _top_k() -> None:
    k_at = _index(torch.ops.tercet.top_k.default, "k")

    @torch.library.register_fake("tercet::top_k")
    def _(queries: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        shape = (queries.shape[0], arguments[k_at - 1])
        return queries.new_empty(shape, dtype=_loss_dtype(queries)), queries.new_empty(shape, dtype=torch.int64)

    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "tercet: top_k has no gradient: select the rows that it found, and compute their distances anew"
        )

    torch.library.register_autograd("tercet::top_k", backward)


def _register() -> None:
    for name in MINED:
        _mined(name)
    for name, matrices in PAIRED.items():
        _paired(name, matrices)
    _pairwise_distance()
    _top_k()


_register()
