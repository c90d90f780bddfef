"""A second application of a plan, independent of the client's: plain tensors and collectives, from the style data alone.

Where the client's run is wrong and this one is right, the plan is not to blame. What each style does:
`planner.ir.styles`. Expert parallelism is not here: its token dispatch is the client's own.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.errors import ShardproofError
from shardproof.planner.ir.placement import Placement, R, Shard
from shardproof.planner.ir.plan import generic, join, key_for
from shardproof.planner.ir.styles import After, Before, ParameterLayout, Style, style_of
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.transformers_facts.composed_plan import TABLE, PlanReader, composed
from shardproof.planner.transformers_facts.tables import automatic_style, is_inner
from shardproof.verify.run.collectives.autograd import AxisRank, enter, gather, gathered, part, reduce, total


class StyleError(ShardproofError, ValueError):
    """A style that cannot be applied where the plan puts it, or that this module does not implement."""


@dataclass(frozen=True, slots=True)
class Application:
    """A model whose parameters are this rank's parts; the placement of each, and the whole size of its sharded dim."""

    model: PreTrainedModel
    placements: Mapping[str, Placement]
    sizes: Mapping[str, int]
    at: AxisRank

    def whole(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole gradients, all-gathered from the ranks; every rank must call it."""
        return {
            name: gathered(value, self.placements[name], self.at, size=self.sizes[name])
            for name, value in gradients.items()
        }


def applied(single: PreTrainedModel, styles: Mapping[str, str], at: AxisRank) -> Application:
    """A copy of the single-device model with the plan applied; `styles` has its keys as the head model sees them.

    Raises:
        StyleError: a style cannot be applied where the plan puts it.
        PartError: a parameter does not divide over the ranks.
    """
    model = copy.deepcopy(single)
    styles = composed(styles, _readers(model), base_prefix(model))
    if unknown := sorted(
        style for style in styles.values() if (known := style_of(style)) is None or known.expert_parallel
    ):
        raise StyleError(f"{unknown[0]!r} is no tensor-parallel style")
    rows = {path: len(module.weight) for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    placements, sizes = _cut(model, styles, at)
    rope = int(getattr(model.config.get_text_config(), "qk_rope_head_dim", 0) or 0)
    for path, module in list(model.named_modules()):
        if (key := key_for(path, styles)) is not None:
            _wrap(module, _style(styles[key]), _Around(at, rows.get(path, 0), rope))
    return Application(model, placements, sizes, at)


def _readers(model: nn.Module) -> list[PlanReader]:
    """The models in a model, with what the client does to their tables without an entry."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and module.base_model is module:
            style = automatic_style(module, TABLE) if hasattr(module, TABLE) else ""
            found.append(PlanReader(generic(path), style, is_inner(model, path)))
    return found


def _cut(model: nn.Module, styles: Mapping[str, str], at: AxisRank) -> tuple[dict[str, Placement], dict[str, int]]:
    """Replace every parameter by this rank's part. Tied parameters stay tied, with the placement of the first of them."""
    made: dict[int, nn.Parameter] = {}
    placements: dict[str, Placement] = {}
    sizes: dict[str, int] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        for local, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            name = join(path, local)
            if id(parameter) not in made:
                placement = _placement(name, local, parameter.ndim, styles)
                mine = part(parameter.detach(), placement, at).clone()
                made[id(parameter)] = nn.Parameter(mine, requires_grad=parameter.requires_grad)
                made[id(made[id(parameter)])] = made[id(parameter)]  # a module with two names is visited twice
                placements[name] = placement
                sizes[name] = parameter.shape[placement.dim] if isinstance(placement, Shard) else 0
            module._parameters[local] = made[id(parameter)]
    return placements, sizes


def _placement(name: str, local: str, ndim: int, styles: Mapping[str, str]) -> Placement:
    """By the parameter's own key, else its module's."""
    key = key_for(name, styles) or key_for(name.rpartition(".")[0], styles)
    return _style(styles[key]).placement(local, ndim) if key else R


def _style(name: str) -> Style:
    found = style_of(name)
    assert found is not None, "unknown styles were refused before"
    return found


@dataclass(frozen=True, slots=True)
class _Around:
    """What a style needs to know: this rank, `rows` of the whole embedding table, features with rotary positions (`rope`)."""

    at: AxisRank
    rows: int
    rope: int


def _wrap(module: nn.Module, style: Style, around: _Around) -> None:
    """Wrap a module's forward with the style's collectives."""
    if style.needs is not None and not hasattr(module, style.needs):
        raise StyleError(f"{type(module).__name__} has no {style.needs!r}, which {style.name} needs")
    if style.layout in (ParameterLayout.FIRST, ParameterLayout.SECOND) and not isinstance(module, nn.Embedding):
        raise StyleError(f"{style.name} on a {type(module).__name__} needs the client's distributed tensors")
    original: Callable[..., torch.Tensor] = module.forward
    if style.grad_allreduce or style.before is Before.TAKE_SEQUENCE:
        for parameter in module.parameters(recurse=False):
            parameter.register_hook(total)  # of one backward, before it is added to what was accumulated

    def forward(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if style.before is Before.TAKE_IDS:
            return _rows(module, original, args, kwargs, around)
        taken = _taken(style.before, args, around.at)
        with _without_bias(module, hidden=_sums(style)) as bias:
            given = original(*taken, **kwargs)
        given = _given(style, given, module, around)
        return given if bias is None else given + bias

    module.forward = forward


def _sums(style: Style) -> bool:
    """Whether a linear layer with this style gives a partial sum, to which its bias is added after the all-reduce."""
    return style.layout is ParameterLayout.INPUT or (
        style.layout is ParameterLayout.PACKED_INPUT and bool(style.packing)
    )


@contextmanager
def _without_bias(module: nn.Module, *, hidden: bool) -> Iterator[nn.Parameter | None]:
    """Without the bias of a row-wise linear, which is added once after the all-reduce; yields the bias."""
    bias = module._parameters.get("bias") if hidden else None
    if bias is None:
        yield None
        return
    module._parameters["bias"] = None
    try:
        yield bias
    finally:
        module._parameters["bias"] = bias


def _rows(
    module: nn.Module,
    original: Callable[..., torch.Tensor],
    args: tuple[torch.Tensor, ...],
    kwargs: Mapping[str, object],
    around: _Around,
) -> torch.Tensor:
    """Lookup in a table sharded by rows: every rank looks up its own rows, ids of other ranks give zeros, and the sum is all-
    reduced.
    """
    most = -(-around.rows // around.at.degree)
    first, have = around.at.rank * most, len(module.get_parameter("weight"))
    own = (args[0] >= first) & (args[0] < first + have)
    table: Any = module  # torch types an attribute of a module as a tensor or a module
    padding: int | None = getattr(table, "padding_idx", None)
    if padding is not None:
        table.padding_idx = padding - first if first <= padding < first + have else None
    try:
        given = original((args[0] - first).masked_fill(~own, 0), *args[1:], **kwargs)
    finally:
        if padding is not None:
            table.padding_idx = padding
    return reduce(given * own.unsqueeze(-1))


def _taken(before: Before, args: tuple[torch.Tensor, ...], at: AxisRank) -> tuple[torch.Tensor, ...]:
    match before:
        case Before.TAKE_REPLICATED:
            return (enter(args[0]), *args[1:])
        case Before.SPLIT:
            whole = enter(args[0])
            return (part(whole, Shard(whole.ndim - 1), at), *args[1:])
        case Before.REDUCE_ROUTING_GRADIENTS:
            routing = args[1:] if len(args) < 3 else (args[1], enter(args[2]), *args[3:])
            return (enter(args[0]), *routing)
        case Before.DIVIDE:
            return (args[0] / at.degree, *args[1:])
        case _:
            return args


def _given(style: Style, given: torch.Tensor, module: nn.Module, around: _Around) -> torch.Tensor:
    match style.after:
        case After.REDUCE:
            return reduce(given)
        case After.GATHER:
            return gather(given, around.at, size=int(getattr(module, style.needs or "embedding_dim")))
        case After.REDUCE_ROPE_GRADIENT:
            if not around.rope:
                raise StyleError(f"{style.name} needs a config with `qk_rope_head_dim`")
            kept, turned = given.split([given.shape[-1] - around.rope, around.rope], dim=-1)
            return torch.cat([kept, enter(turned)], dim=-1)
        case _:
            return given
