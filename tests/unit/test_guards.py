"""For every guard of the proof a smallest program that it refuses, with the code and the words of its own finding.

`python -m benchmarks guards` takes the guards out one by one; a test here, or another fast one, has to notice.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call"

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shardproof.planner.inputs.run_modes import RunMode, Script
from shardproof.planner.ir.findings import Finding
from shardproof.planner.tracing.programs import Subject
from shardproof.planner.tracing.trace import trace_script
from shardproof.verify.proof.tensor import check_tensor
from tests.versions import LOOKS_UP_PRODUCTS, wants

WIDTH, FEATURES = 16, 24
SHARDED = {"up": "colwise", "down": "rowwise"}
Step = Callable[[Any, Tensor, Tensor], Any]


class Exchanged(torch.autograd.Function):
    """The identity of the first tensor, whose gradient is the second one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(other)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


class Unseen(torch.autograd.Function):
    """The identity. Its backward cannot run on meta tensors."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        raise NotImplementedError("no backward without data")


class Doubled(torch.autograd.Function):
    """The identity. Its backward doubles the gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0] * 2


class Pair(nn.Module):
    """A module that gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Own(nn.Module):
    """A module whose parameters are used in its own code."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.weight, self.bias = nn.Parameter(torch.empty(WIDTH, FEATURES)), nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x, x)


class Tiny(nn.Module):
    """`step` on the features of `up`, then `down`; other modules are there for the step to use."""

    def __init__(self, step: Step, *, closed: bool = True, inside: Step = lambda me, h, x: h) -> None:
        super().__init__()
        self.step, self.closed = step, closed
        self.up, self.down = nn.Linear(WIDTH, FEATURES), nn.Linear(FEATURES, WIDTH)
        self.whole, self.pack = nn.Linear(WIDTH, FEATURES), nn.Linear(WIDTH, 2 * FEATURES, bias=False)
        self.thin, self.norm, self.pair, self.act = nn.Linear(WIDTH, 1), nn.RMSNorm(WIDTH), Pair(), nn.Tanh()
        self.gain, self.shift = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(FEATURES))
        self.own = Own(inside)
        self.layers = nn.ModuleList(nn.Sequential(nn.SiLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        h = self.step(self, self.up(x), x)
        return self.down(h) if self.closed else h


def findings(model: nn.Module, styles: dict[str, str], degree: int = 2, *, argument: str = "x") -> tuple[Finding, ...]:
    script = Script(RunMode.TRAINING, ({argument: torch.empty(2, 8, WIDTH, device="meta")},))
    graph, _ = trace_script(model, script)
    return check_tensor(Subject(model, graph, "", script), styles, degree)


def whole_size(h: Tensor) -> bool:
    """Whether all features are here, as a forward may ask that branches on a size."""
    return h.shape[-1] == FEATURES


def _tied(me: Tiny, h: Tensor, x: Tensor) -> Tensor:
    return h * F.linear(x, me.up.weight)


def _partly_written(me: Tiny, h: Tensor, x: Tensor) -> Tensor:
    whole = me.whole(x) * 1.0
    whole[:, 0].mul_(h.sum(-1)[:, :1])
    return whole


def _typed(me: Tiny, h: Tensor, x: Tensor) -> Tensor:
    return h * torch.full((1,), 1.0 if whole_size(h) else 1, device=h.device)


def _in_layers(me: Tiny, h: Tensor, x: Tensor) -> Tensor:
    for layer in me.layers:
        h = layer(h)
    return h


def _repeated_of_part(me: Tiny, h: Tensor, x: Tensor) -> Tensor:
    return h * torch.from_numpy(np.full(1, 1.0 / h.shape[-1], dtype=np.float32)).to(h)


STEPS: list[tuple[str, Step, str, str]] = [
    ("parts of a fixed size", lambda me, h, x: torch.cat(h.split(8, -1), -1), "TP202", "2 tensors on a rank and 3"),
    ("two sharded dims", lambda me, h, x: (h.unsqueeze(-1) * h.unsqueeze(-2)).sum(-1), "TP203", "do not belong"),
    ("softmax", lambda me, h, x: h.softmax(-1), "TP206", "_softmax needs all of a dim"),
    ("a whole addend", lambda me, h, x: h + me.shift, "TP203", "a part of one operand with the whole of another"),
    ("a sum and a shard", lambda me, h, x: h * h.sum(-1, keepdim=True), "TP204", "mul is given a partial sum"),
    ("a function of a sum", lambda me, h, x: me.whole(x) * h.sum(-1, keepdim=True).tanh(), "TP204", "tanh is given"),
    ("more arguments", lambda me, h, x: h * x.flip([0, 1][: h.shape[-1] // 12])[..., :1], "TP209", "plain arguments"),
    ("a factor from a size", lambda me, h, x: torch.add(h, h, alpha=h.shape[-1]), "TP209", "alpha=12"),
    (
        "a fixed head count",
        lambda me, h, x: h.view(2, 8, 6, -1).cumsum(-1).flatten(2),
        "TP202",
        "makes [2, 8, 6, 2] on a rank",
    ),
    ("a fixed count of groups", lambda me, h, x: h.view(2, 8, 6, -1).flatten(2), "TP210", "makes [2, 8, 6, 2] on"),
    ("a head that is cut", lambda me, h, x: h.view(2, 8, -1, 8).flatten(2), "TP201", "a view cuts"),
    ("no rule", lambda me, h, x: torch.nextafter(h, h), "TP210", "no rule tells what aten.nextafter"),
    ("another dtype", lambda me, h, x: h.to(torch.float64 if whole_size(h) else torch.float16).float(), "TP209", "16"),
    ("a dtype from a size", _typed, "TP209", "full uses int64"),
    (
        "cat of part and whole",
        lambda me, h, x: h * torch.cat([h, me.whole(x)], -1)[..., :1],
        "TP203",
        "parts of a concatenation",
    ),
    (
        "counted",
        lambda me, h, x: h * torch.arange(h.shape[-1], device=h.device),
        "TP203",
        "arange makes [12] on a rank",
    ),
    ("written to as a sum", _partly_written, "TP203", "written to with another placement"),
    ("layers of a part", _in_layers, "TP206", "a layer is given S(2)"),
    (
        "a backward that mixes",
        lambda me, h, x: h * Exchanged.apply(x * me.gain, h)[..., :1],
        "TP219",
        "no part of the whole one",
    ),
    ("a backward without data", lambda me, h, x: Unseen.apply(h), "TP210", "could not be traced"),
    ("first places", lambda me, h, x: h * me.whole(x)[..., : h.shape[-1]], "TP203", "slice takes the first part"),
    ("other ops", lambda me, h, x: h.tanh() if whole_size(h) else h.sin(), "TP211", "one rank runs other ops"),
    ("other operands", lambda me, h, x: h * [x.tanh(), x.sin()][whole_size(h)][..., :1], "TP211", "fed another value"),
    ("a numpy constant", _repeated_of_part, "TP209", "a constant that is another one on a rank"),
    ("out of reach", _tied, "TP215", "up.weight"),
    ("a middle part", lambda me, h, x: torch.cat([h[..., 6:18]] * 2, -1), "TP213", "cuts a sharded dim of 24"),
    (
        "halves put together",
        lambda me, h, x: torch.cat([p.tanh() for p in h.chunk(2, -1)], -1),
        "TP210",
        "put together",
    ),
    ("an error on a rank", lambda me, h, x: h * (1 / int(whole_size(h))), "TP202", "division by zero"),
    ("a branch on a part", lambda me, h, x: h.tanh() if h.mean() > 0 else h, "TP210", "mean needs all"),
    ("rows that are no view", lambda me, h, x: h.transpose(0, 1), "TP217", ""),
    ("written in place", lambda me, h, x: h.relu_(), "TP218", "relu_"),
    ("a gain of shards", lambda me, h, x: h * me.gain, "TP207", "gain"),
    ("a backward of a part", lambda me, h, x: h * Doubled.apply(x.detach() * 2 + me.gain)[..., :1], "TP207", "gain"),
    ("a number of a part", lambda me, h, x: h / (1 + h.abs().sum().item()), "TP204", "read is given a partial sum"),
]
"""Steps on sharded features, with the code of the first finding and words of its message."""


@pytest.mark.parametrize(("step", "code", "words"), [one[1:] for one in STEPS], ids=[one[0] for one in STEPS])
def test_a_step_is_refused(step: Step, code: str, words: str) -> None:
    with torch.device("meta"):
        model = Tiny(step)
    expect(findings(model, SHARDED), code, words)


def expect(found: tuple[Finding, ...], code: str, words: str) -> None:
    assert [(one.code, one.message) for one in found[:1] if one.code == code and words in one.message], found


def _gather_pack(me: Tiny, h: Tensor, x: Tensor) -> Tensor:
    return h * me.pack(x)[..., FEATURES:]


def _own_linear(me: Own, h: Tensor, x: Tensor) -> Tensor:
    return F.linear(h, me.weight, me.bias)


def _twice(me: Tiny, h: Tensor, x: Tensor) -> Tensor:
    y = me.down(h)
    return h * y.mean(-1, keepdim=True)


PLANS: list[tuple[str, Step, dict[str, str], int, str, str]] = [
    ("no entry for down", lambda me, h, x: h.tanh(), {"down": ""}, 2, "TP203", "a part of one operand with the whole"),
    ("a style that is given a part", lambda me, h, x: h, {"down": "colwise"}, 2, "TP206", "takes a whole input"),
    ("a shard that is whole", lambda me, h, x: h, {"up": ""}, 2, "TP203", "takes a shard"),
    ("a sum of what is whole", lambda me, h, x: h + me.norm(x)[..., :1], {"norm": "all_reduce"}, 2, "TP205", "partial"),
    ("a split shard", lambda me, h, x: h, {"down": "rowwise_split_input"}, 2, "TP206", "splits its input itself"),
    ("offsets of the whole", _gather_pack, {"pack": "packed_colwise"}, 2, "TP203", "global offsets"),
    ("nothing ran", lambda me, h, x: h, {"pack": "colwise"}, 2, "TP210", "pack.weight is read by no"),
    ("a tuple", lambda me, h, x: h * me.pair(x)[0][..., :1], {"pair": "all_reduce"}, 2, "TP202", "gives a tuple"),
    ("a keyword", lambda me, h, x: h * me.whole(input=x), {"whole": "colwise"}, 2, "TP202", "no positional argument"),
    ("divided twice", lambda me, h, x: me.act(h), {"act": "moe_identity_expert"}, 2, "TP210", "no rule for tp.divide"),
    ("lost behind a sum", _twice, {}, 2, "TP207", "down"),
    ("three ranks", lambda me, h, x: h.view(2, 8, -1, 12).flatten(2), {}, 3, "TP201", "a view cuts"),
]


@pytest.mark.parametrize(
    ("step", "more", "degree", "code", "words"), [one[1:] for one in PLANS], ids=[one[0] for one in PLANS]
)
def test_a_plan_is_refused(step: Step, more: dict[str, str], degree: int, code: str, words: str) -> None:
    with torch.device("meta"):
        model = Tiny(step)
    styles = {pattern: style for pattern, style in {**SHARDED, **more}.items() if style}
    expect(findings(model, styles, degree), code, words)


def test_the_right_plan_is_not_refused() -> None:
    with torch.device("meta"):
        model = Tiny(lambda me, h, x: F.silu(h) * me.up(x))
    assert findings(model, SHARDED) == ()
    assert findings(model, SHARDED, 3) == ()


@pytest.mark.parametrize(
    ("step", "code", "words"),
    [
        (lambda me, h, x: h, "TP206", "the model's output output is S(2)"),
        (lambda me, h, x: h.sum(-1), "TP204", "the model's output output is P(sum)"),
        (lambda me, h, x: (h.sum(-1) > 0).float(), "TP204", "gt is given a partial sum"),
        (lambda me, h, x: [x, x.tanh()][whole_size(h)], "TP211", "gives another value"),
        (lambda me, h, x: (x, x)[: h.shape[-1] // 12], "TP211", "gives other outputs"),
    ],
)
def test_an_output_is_refused(step: Step, code: str, words: str) -> None:
    with torch.device("meta"):
        model = Tiny(step, closed=False)
    expect(findings(model, {"up": "colwise"}), code, words)


NO_LOOKUP = "a style for embeddings stands on norm" if LOOKS_UP_PRODUCTS else 'does with "embedding_rowwise"'
BESIDE: list[tuple[str, Step, dict[str, str], str, str]] = [
    ("no lookup", lambda me, h, x: me.norm(x), {"norm": "embedding_rowwise"}, "TP210", NO_LOOKUP),
    ("summed and whole", lambda me, h, x: me.norm(x), {"norm": "replicated_with_grad_allreduce"}, "TP208", "norm"),
    ("entered for nothing", lambda me, h, x: me.act(x), {"act": "colwise"}, "TP208", "act"),
    ("a mixed sequence", lambda me, h, x: me.own(x), {"own": "sequence_parallel"}, "TP210", "no rule for tp.sequence"),
]


@pytest.mark.parametrize(("step", "more", "code", "words"), [one[1:] for one in BESIDE], ids=[one[0] for one in BESIDE])
def test_what_is_added_to_the_output_is_refused(step: Step, more: dict[str, str], code: str, words: str) -> None:
    with torch.device("meta"):
        model = Tiny(lambda me, h, x: me.down(h) + step(me, h, x), closed=False, inside=lambda me, h, x: x.cumsum(1))
    expect(findings(model, {**SHARDED, **more}), code, words)


def test_a_tied_parameter_that_is_placed_apart_is_refused() -> None:
    with torch.device("meta"):
        model = Tiny(lambda me, h, x: h * me.whole(x)[..., :1])
        model.whole.weight = model.up.weight
    expect(findings(model, SHARDED), "TP212", "one tied parameter, placed differently")


@wants("local_params")
def test_a_bias_that_is_added_on_every_rank_is_refused() -> None:
    with torch.device("meta"):
        model = Tiny(lambda me, h, x: me.own(h), closed=False, inside=_own_linear)
    styles = {"up": "colwise", "own": "local_params", "own.weight": "rowwise"}
    expect(findings(model, styles), "TP204", "linear is given a partial sum")


def test_a_backward_of_the_models_own_that_is_given_a_share_is_refused() -> None:
    with torch.device("meta"):
        model = Tiny(lambda me, h, x: h * Doubled.apply(x * me.gain)[..., :1])
    assert [one.code for one in findings(model, SHARDED)] == ["TP207", "TP220"]


class Grouped(nn.Module):
    """Twelve query heads and three key heads, sharded by head."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Parameter(torch.empty(1, 5, 12, 4)), nn.Parameter(torch.empty(1, 5, 3, 4))

    def forward(self, input: Tensor) -> Tensor:
        query, key = self.query.transpose(1, 2), self.key.transpose(1, 2)
        return input * F.scaled_dot_product_attention(query, key, key, enable_gqa=True).sum()


@wants("local_params")
def test_groups_that_do_not_divide_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(OrderedDict(inner=Grouped()))
    styles = {"inner": "local_params", "inner.query": "colwise", "inner.key": "colwise"}
    expect(findings(model, styles, argument="input"), "TP201", "pairs groups that do not divide over 2 ranks")


def test_a_parameter_of_one_element_is_refused() -> None:
    with torch.device("meta"):
        model = Tiny(lambda me, h, x: h * me.thin(x))
    (finding,) = findings(model, {**SHARDED, "thin": "colwise_gather_output"})
    assert (finding.code, finding.why) == ("TP201", "every rank holds an equal part of each block")
