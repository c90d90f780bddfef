"""Every style of the installed Transformers on two ranks as threads, against the table of styles applied with plain tensors.

Compared are what each rank holds of every parameter, what the module gives, and the gradients of its input and its parameters.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers.distributed import tensor_parallel

from shardproof.planner.ir.styles import STYLES, Before
from shardproof.planner.transformers_facts.styles import differs, modelled
from shardproof.verify.run.collectives.autograd import AxisRank
from shardproof.verify.run.collectives.own_styles import applied
from shardproof.verify.run.collectives.threads import Threads

WIDTH, OUT, ROPE = 4, 8, 2


class Table(nn.Embedding):
    """A table of numbered rows."""


class Scaled(nn.Module):
    """A module that uses a parameter of its own, as a norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Experts(nn.Module):
    """Stacked matrices, called with hidden states, ids and routing weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(2, OUT, WIDTH))
        self.down = nn.Parameter(torch.zeros(2, WIDTH, OUT))

    def forward(self, x: Tensor, ids: Tensor, routing: Tensor) -> Tensor:
        return torch.einsum("tw,tow,tvo,t->tv", x, self.up[ids], self.down[ids], routing)


class Whole(nn.Module):
    """A model of one part, with what a client's application of a plan reads."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        text = SimpleNamespace(qk_rope_head_dim=ROPE)
        self.config: Any = SimpleNamespace(qk_rope_head_dim=ROPE, get_text_config=lambda: text)
        with torch.no_grad():
            for at, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape).to(parameter) + at + 1)

    def forward(self, *args: Tensor) -> Tensor:
        output: Tensor = self.part(*args)
        return output


def numbered(*shape: int) -> Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def linear() -> nn.Module:
    return nn.Linear(WIDTH, OUT).double()


PARTS: dict[str, Callable[[], nn.Module]] = {
    "embedding_rowwise": lambda: Table(OUT, WIDTH).double(),
    "embedding_colwise": lambda: Table(OUT, WIDTH).double(),
    "packed_rowwise": lambda: nn.Linear(WIDTH, OUT, bias=False).double(),
    "moe_tp_experts": lambda: Experts().double(),
    "moe_identity_expert": nn.Identity,
    "all_reduce": nn.Identity,
    "replicated_with_grad_allreduce": lambda: Scaled().double(),
    "replicate": lambda: Scaled().double(),
    "local_params": lambda: Scaled().double(),
}
ON_RANKS = [
    name
    for name, style in modelled().items()
    # A legacy wrap that no model uses, a layout without a forward of its own, and the dispatch of experts, which other tests run.
    if not style.expert_parallel and name not in ("sequence_parallel", "packed_rowwise")
]


@dataclass(frozen=True)
class Seen:
    """What one rank has: its parts of the parameters, its output, and the gradients."""

    tensors: dict[str, Tensor]

    def against(self, other: "Seen") -> list[str]:
        """What differs."""
        assert self.tensors.keys() == other.tensors.keys()
        return [name for name, value in self.tensors.items() if not torch.equal(value, other.tensors[name])]


def given(style: str, rank: int) -> list[Tensor]:
    """The arguments of one rank's call: whole, or its part where the style takes a shard."""
    if style.startswith("embedding"):
        return [torch.tensor([[0, 3, 5], [1, 2, 4]])]
    if style == "moe_tp_experts":
        return [numbered(3, WIDTH).requires_grad_(), torch.tensor([0, 1, 1]), numbered(3).requires_grad_()]
    x = numbered(2, 3, WIDTH)
    if STYLES[style].before is Before.TAKE_SHARDED:
        x = x.chunk(2, -1)[rank].clone()
    return [x.requires_grad_()]


def local(tensor: Tensor, *, like: Tensor | None = None) -> Tensor:
    """This rank's part; of a gradient, laid out as its parameter."""
    if not isinstance(tensor, DTensor):
        return tensor
    laid_out = tensor.redistribute(placements=like.placements) if isinstance(like, DTensor) else tensor
    return laid_out.to_local()


def seen(model: nn.Module, style: str, rank: int) -> Seen:
    arguments = given(style, rank)
    output = model(*arguments)
    # Gradients differ by rank where they may; of a lookup torch may sum those of a replicated output as it likes.
    (output * (numbered(*output.shape) + (0 if style.startswith("embedding") else rank))).sum().backward()
    found = {"output": output.detach()}
    found |= {f"gradient of argument {n}": a.grad for n, a in enumerate(arguments) if a.grad is not None}
    for name, parameter in model.named_parameters():
        found[name] = local(parameter.data)
        if parameter.grad is not None:
            found[f"gradient of {name}"] = local(parameter.grad, like=parameter)
    return Seen(found)


def entries(style: str) -> dict[str, str]:
    """The entries of the one part: experts are cut by parameters of their own."""
    own = {"part.up": "colwise", "part.down": "rowwise"} if style == "moe_tp_experts" else {}
    return own | {"part": style}


def by_client(whole: nn.Module, style: str, rank: int) -> Seen:
    model = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))["tp"]
    plan = {name: style for name, _ in model.named_parameters()} | entries(style)
    shard: Callable[..., object] = tensor_parallel.apply_tensor_parallelism
    try:
        shard(model, mesh, plan)
    except TypeError:  # up to 5.18 the plan is the model's own
        vars(model)["tp_plan"] = plan
        shard(model, mesh)
    return seen(model, style, rank)


def by_table(whole: Any, style: str, rank: int) -> Seen:
    return seen(applied(whole, entries(style), AxisRank(rank, 2)).model, style, rank)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Threads]:
    with Threads(2) as made:
        yield made


@pytest.mark.parametrize("style", ON_RANKS)
def test_a_style_does_on_ranks_what_the_table_says(style: str, ranks: Threads) -> None:
    whole = Whole(PARTS.get(style, linear)())
    assert not differs(style, whole.part, sharded=True)
    client = ranks.run(lambda rank: by_client(whole, style, rank))
    table = ranks.run(lambda rank: by_table(whole, style, rank))
    assert [one.against(other) for one, other in zip(client, table, strict=True)] == [[], []]


def test_a_wrong_row_of_the_table_would_be_found(ranks: Threads) -> None:
    whole = Whole(linear())
    client = ranks.run(lambda rank: by_client(whole, "colwise", rank))
    table = ranks.run(lambda rank: by_table(whole, "colwise_gather_output", rank))
    assert all("output" in one.against(other) for one, other in zip(client, table, strict=True))
