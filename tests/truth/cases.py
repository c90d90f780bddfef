"""One small program for every rule, and the rules that no such program can test."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.truth.elementwise import ELEMENTWISE
from tests.truth.harness import Case

IDS = torch.tensor([[0, 5, 3], [2, 2, 11]])
LIST = torch.tensor([2, 0])
aten = torch.ops.aten


def written(a: Tensor, b: Tensor) -> Tensor:
    """A tensor of which a part is written to."""
    made = a + a
    made[1] = b
    return made


def masked(a: Tensor, b: Tensor) -> Tensor:
    made = a + a
    made[LIST] = b
    return made


def solved(a: Tensor, b: Tensor) -> Tensor:
    found: Tensor = torch.linalg.solve_triangular(a, b, upper=True, unitriangular=True)
    return found


def solved_right(a: Tensor, b: Tensor) -> Tensor:
    found: Tensor = torch.linalg.solve_triangular(a, b, upper=False, left=False, unitriangular=True)
    return found


PRODUCTS = (
    Case("linear", F.linear, ((2, 6), (12, 6))),
    Case("linear bias", F.linear, ((2, 6), (12, 6), (12,))),
    Case("linear vector", F.linear, ((2, 6), (6,))),
    Case("matmul", torch.matmul, ((2, 6, 4), (2, 4, 12))),
    Case("matmul broadcast", torch.matmul, ((2, 6, 3, 4), (1, 6, 4, 2))),
    Case("matmul vector", torch.matmul, ((6, 12), (12,))),
    Case("mm", torch.mm, ((6, 4), (4, 12))),
    Case("bmm", torch.bmm, ((6, 2, 4), (6, 4, 2))),
    Case("mv", torch.mv, ((6, 12), (12,))),
    Case("dot", torch.dot, ((12,), (12,))),
    Case("addmm", torch.addmm, ((12,), (6, 4), (4, 12))),
    Case("addmm whole", torch.addmm, ((6, 12), (6, 4), (4, 12))),
    Case("baddbmm", torch.baddbmm, ((6, 2, 4), (6, 2, 4), (6, 4, 4))),
    Case("einsum", lambda a, b: torch.einsum("bhd,hde->bhe", a, b), ((2, 6, 4), (6, 4, 2))),
    Case("einsum implicit", lambda a, b: torch.einsum("...ij,jk", a, b), ((2, 6, 4), (4, 6))),
    Case(
        "solve_triangular",
        solved,
        ((2, 4, 4), (2, 4, 6)),
    ),
    Case(
        "solve_triangular right",
        solved_right,
        ((6, 4, 4), (1, 2, 4)),
    ),
    Case("distances", lambda x, y: torch.cdist(x, y), ((2, 6, 4), (2, 12, 4))),
    Case("convolution", lambda x, w: F.conv1d(x, w), ((2, 4, 6), (6, 4, 3))),
    Case("convolution bias", lambda x, w, b: F.conv1d(x, w, b), ((2, 4, 6), (6, 4, 3), (6,))),
    Case("convolution depthwise", lambda x, w: F.conv1d(x, w, groups=x.shape[1]), ((2, 12, 6), (12, 1, 3))),
    Case(
        "attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ((2, 6, 3, 4), (2, 6, 3, 4), (2, 6, 3, 4)),
    ),
    Case(
        "attention mask",
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        ((1, 6, 3, 4), (1, 6, 3, 4), (1, 6, 3, 4), (1, 1, 3, 3)),
    ),
    Case(
        "attention grouped",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        ((1, 12, 3, 4), (1, 6, 3, 4), (1, 6, 3, 4)),
    ),
)

REDUCTIONS = (
    Case("sum", lambda a: a.sum(-1), ((4, 6),)),
    Case("sum keepdim", lambda a: a.sum(0, keepdim=True), ((6, 4),)),
    Case("sum all", lambda a: a.sum(), ((6, 4),)),
    Case("mean", lambda a: a.mean(-1), ((6, 4),)),
    Case("amax", lambda a: a.amax(-1), ((6, 4),)),
    Case("amin", lambda a: a.amin(-1), ((6, 12),)),
    Case("max", lambda a: a.max(-1)[0], ((6, 12),)),
    Case("min", lambda a: a.min(-1)[0], ((6, 12),)),
    Case("argmax", lambda a: a.argmax(-1), ((6, 12),)),
    Case("argmin", lambda a: a.argmin(-1), ((6, 12),)),
    Case("prod", lambda a: a.prod(-1), ((6, 4),)),
    Case("any", lambda a: (a > 2).any(-1), ((6, 4),)),
    Case("all", lambda a: (a > -3).all(-1), ((6, 4),)),
    Case("_is_all_true", lambda a: aten._is_all_true(a > -4), ((6, 4),)),
    Case("std", lambda a: a.std(-1), ((6, 12),)),
    Case("std_mean", lambda a: torch.std_mean(a, -1)[0], ((6, 12),)),
    Case("var", lambda a: a.var(-1), ((6, 12),)),
    Case("var_mean", lambda a: torch.var_mean(a, -1)[0], ((6, 12),)),
    Case("vector_norm", lambda a: torch.linalg.vector_norm(a, dim=-1), ((6, 12),)),
    Case("norm", lambda a: aten.norm(a, 2, [1]), ((6, 12),)),
    Case("logsumexp", lambda a: a.logsumexp(-1), ((6, 12),)),
    Case("aminmax", lambda a: torch.aminmax(a, dim=-1)[0], ((6, 12),)),
    Case("fft", lambda a: torch.view_as_real(torch.fft.fft(torch.fft.fft(a, dim=-1), dim=-1)), ((6, 6),)),
    Case("fft back", lambda a: torch.fft.irfft(torch.fft.rfft(a, dim=-1), n=6, dim=-1), ((4, 6),)),
    Case("median", lambda a: a.median(-1)[0], ((6, 12),)),
    Case("count_nonzero", lambda a: a.count_nonzero(-1), ((6, 12),)),
    Case("softmax", lambda a: a.softmax(-1), ((6, 12),)),
    Case("log_softmax", lambda a: a.log_softmax(-1), ((6, 12),)),
    Case("cumsum", lambda a: a.cumsum(0), ((6, 4),)),
    Case("cumprod", lambda a: a.cumprod(0), ((6, 4),)),
    Case("cummax", lambda a: a.cummax(0)[0], ((6, 4),)),
    Case("logcumsumexp", lambda a: a.logcumsumexp(0), ((6, 4),)),
    Case("sort", lambda a: a.sort(0)[0], ((6, 4),)),
    Case("sort last", lambda a: a.sort()[0], ((6, 12),)),
    Case("flip", lambda a: a.flip(0), ((6, 12),)),
    Case("roll", lambda a: a.roll(1, 0), ((6, 12),)),
    Case("glu", lambda a: F.glu(a, -1), ((6, 12),)),
    Case("windows side by side", lambda a: a.unfold(-1, 3, 3).softmax(-1), ((6, 12),)),
    Case("topk", lambda a: a.topk(2, -1)[0], ((6, 12),)),
    Case("max_pool1d", lambda a: F.max_pool1d(a, 2), ((1, 6, 4),)),
    Case("max_pool3d", lambda a: F.max_pool3d(a, 2), ((1, 6, 4, 4, 4),)),
    Case("sampled places", lambda a, g: F.grid_sample(a, g / 64, align_corners=True), ((6, 4, 3, 3), (6, 2, 4, 2))),
    Case("windows of images", lambda a: F.unfold(a, 2), ((6, 12, 3, 3),)),
    Case("avg_pool1d", lambda a: F.avg_pool1d(a, 3, 1), ((1, 6, 5),)),
    Case("avg_pool2d", lambda a: F.avg_pool2d(a, 3, 1), ((1, 6, 5, 5),)),
    Case("avg_pool3d", lambda a: F.avg_pool3d(a, 2), ((1, 6, 4, 4, 4),)),
    Case("adaptive_avg_pool2d", lambda a: F.adaptive_avg_pool2d(a, 2), ((1, 6, 5, 5),)),
    Case("adaptive_avg_pool3d", lambda a: F.adaptive_avg_pool3d(a, 2), ((1, 6, 5, 5, 5),)),
    *(
        Case(f"upsample {size}", lambda a: F.interpolate(a, scale_factor=2), ((1, 6, 4, 4, 4)[: size + 2],))
        for size in (1, 2, 3)
    ),
    Case("upsample linear", lambda a: F.interpolate(a, scale_factor=2, mode="linear"), ((1, 6, 4),)),
    Case("upsample bilinear", lambda a: F.interpolate(a, scale_factor=2, mode="bilinear"), ((1, 6, 4, 4),)),
    *(
        Case(f"{mode} pad {size}", partial(F.pad, pad=(1, 0) * size, mode=mode), ((1, 6, 4, 4)[: size + 2],))
        for mode in ("replicate", "reflect")
        for size in (1, 2)
    ),
    Case("bucketize", lambda a: torch.bucketize(a, torch.tensor([0.0, 1.0])), ((6, 4),)),
    Case("kthvalue of a dim before", lambda a: a.kthvalue(1, 1)[0], ((6, 2, 12),)),
    Case("kthvalue", lambda a: a.kthvalue(2, -1)[0], ((6, 12),)),
    Case("layer_norm", lambda a, w: F.layer_norm(a, (6,), w), ((4, 6), (6,))),
    Case("rms_norm", lambda a, w: F.rms_norm(a, (6,), w), ((4, 6), (6,))),
    Case("native_layer_norm", lambda a: aten.native_layer_norm(a, [6], None, None, 1e-5)[0], ((4, 6),)),
    Case("group_norm", lambda a: F.group_norm(a, 2), ((6, 4, 3),)),
    Case("native_group_norm", lambda a: aten.native_group_norm(a, None, None, a.shape[0], 4, 3, 2, 1e-5)[0], ((6, 4, 3),)),
)  # fmt: skip

VIEWS = (
    Case("view split", lambda a: a.view(2, -1, 3), ((2, 18),)),
    Case("view merge", lambda a: a.reshape(a.shape[0], -1), ((2, 6, 4),)),
    Case("view merge outer", lambda a: a.reshape(-1, a.shape[-1]), ((2, 6, 4),)),
    Case("flatten all", lambda a: a.reshape(-1), ((2, 12),)),
    Case("transpose", lambda a: a.transpose(0, 1), ((4, 12),)),
    Case("t", lambda a: a.t(), ((4, 12),)),
    Case("permute", lambda a: a.permute(2, 0, 1), ((2, 4, 6),)),
    Case("unsqueeze", lambda a: a.unsqueeze(1), ((4, 6),)),
    Case("squeeze", lambda a: a.squeeze(1), ((4, 1, 6),)),
    Case("expand", lambda a: a.expand(4, 6), ((1, 6),)),
    Case("slice whole other", lambda a: a[:, 1:3], ((6, 4),)),
    Case("slice half", lambda a: a[..., : a.shape[-1] // 2], ((2, 12),)),
    Case("chunk second", lambda a: a.chunk(2, -1)[1], ((2, 12),)),
    Case("split_with_sizes", lambda a: a.split([2, 4], 0)[1], ((6, 12),)),
    Case("unsafe_split", lambda a: torch.unsafe_split(a, a.shape[1] // 2, 1)[0], ((6, 12),)),
    Case("select", lambda a: a[:, 1], ((6, 4),)),
    Case("unbind", lambda a: a.unbind(1)[0], ((6, 2),)),
    Case("cat", lambda a, b: torch.cat([a, b], -1), ((4, 6), (4, 6))),
    Case("cat unequal", lambda a, b: torch.cat([a, b], -1), ((6, 6), (6, 12))),
    Case("stack", lambda a, b: torch.stack([a, b]), ((4, 6), (4, 6))),
    Case("repeat", lambda a: a.repeat(1, 2), ((6, 12),)),
    Case("repeat new dim", lambda a: a.repeat(2, 1, 1), ((6, 12),)),
    Case("repeat_interleave", lambda a: a.repeat_interleave(2, 0), ((6, 4),)),
    Case("pad", lambda a: F.pad(a, (1, 0)), ((6, 12),)),
    Case("unfold", lambda a: a.unfold(0, 2, 1), ((6, 12),)),
    Case("tril", lambda a: a.tril(), ((6, 4, 4),)),
    Case("triu", lambda a: a.triu(), ((6, 4, 4),)),
    Case("written", written, ((6, 12), (12,))),
    Case("view_as_complex", lambda a, b: torch.view_as_real(torch.view_as_complex(a) * b), ((6, 4, 2), (6, 4))),
)

LOOKUPS = (
    Case("embedding", lambda w: F.embedding(IDS, w), ((12, 6),)),
    Case("aten embedding", lambda w: aten.embedding(w, IDS), ((12, 6),)),
    Case("index", lambda a: a[torch.tensor([0, 2])], ((6, 4),)),
    Case("index_select", lambda a: a.index_select(0, LIST), ((6, 4),)),
    Case("gather", lambda a: a.gather(1, torch.zeros(a.shape[0], 1, dtype=torch.long)), ((6, 4),)),
    Case("gather short", lambda a, b: a.gather(1, (b * 0).long()), ((6, 2, 12), (6, 1, 6))),
    Case("scatter_add short", lambda a, b: a.scatter_add(1, (b * 0).long(), b), ((6, 2, 12), (6, 1, 6))),
    Case("scatter", lambda a, b: a.scatter(1, (b * 0).long(), b), ((6, 4), (6, 1))),
    Case("scatter_add", lambda a, b: a.scatter_add(1, torch.ones_like(b).long(), b), ((6, 4), (6, 1))),
    Case("scatter_reduce", lambda a, b: a.scatter_reduce(1, torch.ones_like(b).long(), b, "amax"), ((6, 4), (6, 1))),
    Case("index_add", lambda a, b: a.index_add(0, torch.tensor([1, 0]), b), ((4, 6), (2, 6))),
    Case("index_copy", lambda a, b: a.index_copy(0, torch.tensor([1, 0]), b), ((4, 6), (2, 6))),
    Case("index_fill", lambda a: a.index_fill(0, torch.tensor([1, 0]), 2.0), ((4, 6),)),
    Case("index_put", masked, ((4, 6), (2, 6))),
    Case("_unsafe_index_put", lambda a, b: aten._unsafe_index_put(a, [LIST], b), ((4, 6), (2, 6))),
    Case("_index_put_impl", lambda a, b: aten._index_put_impl(a, [LIST], b, False, True), ((4, 6), (2, 6))),
    Case("one_hot", lambda a: F.one_hot(a.abs().long(), 12), ((6, 4),)),
    Case("searchsorted", lambda a, b: torch.searchsorted(a.sort()[0], b), ((12,), (6,))),
    Case("histc", lambda a: a.histc(4, -4, 4), ((12,),)),
)  # fmt: skip

CONSTANTS = (
    Case("zeros_like", torch.zeros_like, ((6, 4),)),
    Case("ones_like", lambda a: torch.ones_like(a), ((6, 4),)),
    Case("full_like", lambda a: torch.full_like(a, 2.0), ((6, 4),)),
    Case("zero", lambda a: (a + a).zero_(), ((6, 4),)),
    Case("fill", lambda a: (a + a).fill_(2.0), ((6, 4),)),
    Case("copy", lambda a, b: (a + a).copy_(b), ((6, 4), (6, 4))),
    Case("zeros", lambda a: a * torch.zeros(a.shape, dtype=a.dtype, device=a.device), ((6, 4),)),
    Case("ones", lambda a: a * torch.ones(a.shape, dtype=a.dtype, device=a.device), ((6, 4),)),
    Case("full", lambda a: a * torch.full(a.shape, 3.0, dtype=a.dtype, device=a.device), ((6, 4),)),
    Case("new_zeros", lambda a: a + a.new_zeros(a.shape), ((6, 4),)),
    Case("new_ones", lambda a: a * a.new_ones(a.shape), ((6, 4),)),
    Case("new_full", lambda a: a * a.new_full(a.shape, 3.0), ((6, 4),)),
    Case("scalar_tensor", lambda a: a * torch.scalar_tensor(3.0, dtype=a.dtype, device=a.device), ((6, 4),)),
    Case("arange", lambda a: a * torch.arange(a.shape[-1], dtype=a.dtype, device=a.device), ((6, 4),)),
    Case("linspace", lambda a: a * torch.linspace(0, 1, a.shape[-1], dtype=a.dtype, device=a.device), ((6, 4),)),
    Case("logspace", lambda a: a * torch.logspace(0, 1, a.shape[-1], dtype=a.dtype, device=a.device), ((6, 4),)),
    Case("eye", lambda a: a @ torch.eye(a.shape[-1], dtype=a.dtype, device=a.device), ((6, 4),)),
)  # fmt: skip

UNEVEN = (
    Case("uneven add", torch.add, ((5, 7), (5, 7))),
    Case("uneven silu", F.silu, ((5, 7),)),
    Case("uneven linear", F.linear, ((2, 5), (7, 5))),
    Case("uneven linear bias", F.linear, ((2, 5), (7, 5), (7,))),
    Case("uneven matmul", torch.matmul, ((2, 5, 3), (2, 3, 7))),
    Case("uneven einsum", lambda a, b: torch.einsum("bhd,hde->bhe", a, b), ((2, 5, 3), (5, 3, 2))),
    Case("uneven sum", lambda a: a.sum(-1), ((5, 7),)),
    Case("uneven mean", lambda a: a.mean(-1), ((5, 7),)),
    Case("uneven softmax", lambda a: a.softmax(-1), ((5, 7),)),
    Case("uneven transpose", lambda a: a.transpose(0, 1), ((5, 7),)),
    Case("uneven view that keeps a dim", lambda a: a.view(-1, a.shape[-1]), ((2, 3, 7),)),
    Case("uneven view that splits", lambda a: a.view(2, -1, 3), ((2, 15),)),
    Case("uneven view that merges", lambda a: a.reshape(a.shape[0], -1), ((2, 5, 3),)),
    Case("uneven cat", lambda a, b: torch.cat([a, b], -1), ((5, 7), (5, 7))),
    Case("uneven slice", lambda a: a[..., : a.shape[-1] // 2], ((5, 7),)),
    Case("uneven select", lambda a: a[:, 1], ((5, 7),)),
    Case("uneven embedding", lambda w: F.embedding(torch.tensor([0, 2]), w), ((5, 7),)),
    Case("uneven zeros", lambda a: a + torch.zeros(a.shape, dtype=a.dtype, device=a.device), ((5, 7),)),
    Case(
        "uneven attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        ((1, 10, 3, 2), (1, 5, 3, 2), (1, 5, 3, 2)),
    ),
)
"""Dims that no degree divides: the last rank's part is shorter."""

CASES = (*ELEMENTWISE, *PRODUCTS, *REDUCTIONS, *VIEWS, *LOOKUPS, *CONSTANTS)

RANDOM = """bernoulli binomial cauchy exponential geometric log_normal multinomial normal poisson rand rand_like randint
    randint_like randn randn_like random randperm uniform""".split()
UNTESTABLE = {
    "repeat": "a layer that was not traced again: the recorder makes it, no function of tensors does",
    "aten.empty": "its values are whatever the memory held",
    "aten.new_empty": "its values are whatever the memory held",
    "aten.empty_like": "its values are whatever the memory held",
    **dict.fromkeys(
        [f"aten.{name}" for name in RANDOM], "its values are random: any part is refused, and the whole passes"
    ),
    "aten.native_dropout": "its values are random",
    "dropout": "its values are random",
    "read": "it gives a number, no tensor: the recorder makes it",
    "gradient_of": "a gradient that lies as its value: the recorder makes it",
    "own_backward": "a value with a backward of its own: the recorder makes it",
    "aten.nonzero": "the shape of its result depends on data, and a trace takes a fixed one",
    "aten.masked_select": "the shape of its result depends on data, and a trace takes a fixed one",
    "aten._unique2": "the shape of its result depends on data, and a trace takes a fixed one",
    "aten._local_scalar_dense": "it gives a number, no tensor",
    "aten.bincount": "torch has no meta kernel for it",
    "aten._grouped_mm": "its kernel takes half-precision numbers, in which small integers are not told from rounding",
}
"""Rules without a case, and why."""
