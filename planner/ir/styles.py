"""What each Transformers style does, as data: parameters, input, output, collectives, backward.

Facts read from Transformers 5.23.0, `transformers/distributed/tensor_parallel.py` and `expert_parallel.py`; a test compares
the names with the installed `ALL_PARALLEL_STYLES`. A style stands on a module (its hooks), on a parameter (its layout), or
both: a linear module's entry lays out its weight and bias too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import gcd

from shardproof.planner.ir.placement import Placement, R, Shard, packed


class ParameterLayout(StrEnum):
    """How a style lays out a parameter of `ndim` dims."""

    KEEP = "keep"
    """R, whatever the parameter."""
    OUTPUT = "output"
    """`S(ndim - 2)`, a bias `S(0)`: the output features of a linear or of stacked experts."""
    PACKED_OUTPUT = "packed output"
    """`S(ndim - 2 / 2)`; a bias plain `S(0)`."""
    INPUT = "input"
    """`S(ndim - 1)`; a parameter called `bias` R."""
    PACKED_INPUT = "packed input"
    """`S(ndim - 1 / 2)`; a one-dimensional parameter R."""
    FIRST = "first"
    """`S(0)`."""
    SECOND = "second"
    """`S(1)`."""


class Before(StrEnum):
    """What a style's hook does with the module's first input."""

    NOTHING = "nothing"
    TAKE_REPLICATED = "take R; all-reduce its gradient"
    TAKE_SHARDED = "take S(-1)"
    SPLIT = "take R, keep this rank's S(-1)"
    TAKE_IDS = "take R; look up this rank's rows only"
    REDUCE_ROUTING_GRADIENTS = "take R; all-reduce the gradients of the hidden states and of the routing weights"
    DIVIDE = "divide by the degree"
    TAKE_SEQUENCE = "take what comes as S(1), and sum the parameters' gradients over the ranks"
    GATHER = "all-gather S(-1)"


class After(StrEnum):
    """What a style's hook does with the module's output."""

    NOTHING = "nothing"
    GATHER = "all-gather S(-1)"
    REDUCE = "all-reduce P(sum)"
    SPLIT = "keep this rank's S(-1)"
    REDUCE_ROPE_GRADIENT = "all-reduce the gradient of the last qk_rope_head_dim features"


class Reach(StrEnum):
    """Where code can use a module's sharded parameters. Elsewhere a distributed tensor meets plain tensors, and torch
    raises.
    """

    NOWHERE = "nowhere"
    """Nowhere: the parameters stay distributed tensors, while the forward computes with plain ones."""
    OWN = "own"
    """In the module's own operators: the hook makes the first input a distributed tensor as well."""
    BELOW = "below"
    """In the module's forward and the modules that it calls: the parameters are local tensors meanwhile."""


@dataclass(frozen=True, slots=True)
class Style:
    """One Transformers style: the placement of the parameters, the hooks around the forward, the attribute that it needs."""

    name: str
    layout: ParameterLayout = ParameterLayout.KEEP
    before: Before = Before.NOTHING
    after: After = After.NOTHING
    needs: str | None = None
    reach: Reach = Reach.NOWHERE
    grad_allreduce: bool = False
    expert_parallel: bool = False
    packing: tuple[int, ...] = ()
    """The sizes of the packed blocks in proportion, where the name says them; a bias is cut in the same blocks."""

    def placement(self, parameter: str, ndim: int) -> Placement:
        """The placement of a parameter with this local name and number of dims; `R` if the style does not shard it."""
        match self.layout:
            case ParameterLayout.KEEP:
                return R
            case ParameterLayout.OUTPUT:
                return Shard(max(ndim - 2, 0))
            case ParameterLayout.PACKED_OUTPUT if self.packing:
                return packed(max(ndim - 2, 0), self.packing)
            case ParameterLayout.PACKED_INPUT if self.packing:
                return R if parameter == "bias" else packed(ndim - 1, self.packing)
            case ParameterLayout.PACKED_OUTPUT:
                return Shard(0) if ndim == 1 else Shard(ndim - 2, blocks=2)
            case ParameterLayout.INPUT:
                return R if parameter == "bias" else Shard(ndim - 1)
            case ParameterLayout.PACKED_INPUT:
                return R if ndim == 1 else Shard(ndim - 1, blocks=2)
            case ParameterLayout.FIRST:
                return Shard(0)
            case ParameterLayout.SECOND:
                return Shard(1)


OWN, BELOW = Reach.OWN, Reach.BELOW

STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style("colwise", ParameterLayout.OUTPUT, Before.TAKE_REPLICATED, needs="out_features", reach=OWN),
        Style(
            "colwise_gather_output",
            ParameterLayout.OUTPUT,
            Before.TAKE_REPLICATED,
            After.GATHER,
            "out_features",
            reach=OWN,
        ),
        Style("colwise_rep", ParameterLayout.OUTPUT, Before.TAKE_REPLICATED, After.GATHER, "out_features", reach=OWN),
        Style("rowwise", ParameterLayout.INPUT, Before.TAKE_SHARDED, After.REDUCE, "in_features", reach=OWN),
        Style("rowwise_split_input", ParameterLayout.INPUT, Before.SPLIT, After.REDUCE, "in_features", reach=OWN),
        Style("rowwise_rep", ParameterLayout.INPUT, Before.SPLIT, After.REDUCE, "in_features", reach=OWN),
        Style("embedding_rowwise", ParameterLayout.FIRST, Before.TAKE_IDS, After.REDUCE, reach=OWN),
        Style("embedding_colwise", ParameterLayout.SECOND, Before.NOTHING, After.GATHER, reach=OWN),
        Style("packed_colwise", ParameterLayout.PACKED_OUTPUT, Before.TAKE_REPLICATED, reach=BELOW),
        Style("packed_rowwise", ParameterLayout.PACKED_INPUT),
        Style("moe_tp_experts", ParameterLayout.KEEP, Before.REDUCE_ROUTING_GRADIENTS, After.REDUCE, reach=BELOW),
        Style("moe_identity_expert", ParameterLayout.KEEP, Before.DIVIDE),
        Style("mla_kv_a_proj", ParameterLayout.KEEP, after=After.REDUCE_ROPE_GRADIENT),
        Style("replicated_with_grad_allreduce", grad_allreduce=True),
        Style("all_reduce", after=After.REDUCE),
        Style("local_params", reach=BELOW),
        Style("sequence_parallel", before=Before.TAKE_SEQUENCE, grad_allreduce=True),
        Style("replicate"),
        Style("grouped_gemm", ParameterLayout.FIRST, expert_parallel=True),
        Style("ep_dispatch_experts", expert_parallel=True, reach=BELOW),
    )
}


_PACKED = re.compile(r"packed_(colwise|rowwise)\[(\d+(?:, \d+)*)\]")


def packed_name(kind: str, sizes: Sequence[int]) -> str:
    """The name of a style with its blocks in lowest terms, such as `packed_rowwise[1, 4]`; `kind` is `colwise` or `rowwise`."""
    lowest = gcd(*sizes) or 1
    return f"packed_{kind}[{', '.join(str(size // lowest) for size in sizes)}]"


def is_packed_name(name: str) -> bool:
    """Whether a name says its blocks: a style of diffusers (0.42.1, `hooks/tensor_parallel.py`), and none of Transformers."""
    return _PACKED.fullmatch(name) is not None


def style_of(name: str) -> Style | None:
    """The style of this name; None where there is none.

    `packed_colwise[1, 1, 4]` is `colwise` of a weight whose output features are blocks of these sizes in proportion, each of
    which is sharded; `packed_rowwise[1, 4]` is `rowwise` of a weight whose input features are.
    """
    if (found := _PACKED.fullmatch(name)) is None:
        return STYLES.get(name)
    sizes = tuple(int(size) for size in found[2].split(", "))
    if not all(sizes):
        return None
    like = STYLES[found[1]]
    layout = ParameterLayout.PACKED_OUTPUT if found[1] == "colwise" else ParameterLayout.PACKED_INPUT
    return replace(like, name=name, layout=layout, packing=sizes)
