"""One rank of SGLang's Transformers backend: the forward by the plan, against one device.

Run by `launch.clients.client_ranks` with an interpreter that has SGLang's package beside Transformers, once a rank:
`session.py JOB.json`, with the variables of torchrun set. The job is `{"folder", "client", "plan": {pattern: style}, "degree",
"out"}`. Rank 0 writes `{"differences": {what: largest difference}}` to `out`, a rank that fails `{"error", "rank"}` to `out` with
its number.

What is executed is the reader of 0.5.23 itself, `sglang/srt/models/transformers.py`, on real modules: it makes the base model,
reads the plan, replaces linear layers, norms and the table, and runs the forward. SGLang's layers need CUDA packages, so that
what the file imports from them is answered here by torch, and holds to their signatures: parallel linear layers and tables
(`layers/linear.py`, `layers/vocab_parallel_embedding.py`), norms, an attention over this rank's heads
(`layers/radix_attention.py`, `layers/attention/torch_native_backend.py`), the logits. Weights are copied in by us. Experts are
not run. The plan is put where `--json-model-override-args` puts it (`utils/hf_transformers/config.py`): on the config.
"""

import json
import os
import sys
import traceback
from importlib import import_module, util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

SETTINGS = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
TOKENS = ((3, 5, 7, 9, 11, 2, 4, 6, 8, 10, 12, 1), (1, 12, 10, 8, 6))
READER = "sglang.srt.models.transformers"


def main(job: dict[str, Any]) -> None:
    """The logits of the reader's model on two ranks, and of Transformers on one device; rank 0 writes how far they are apart."""
    os.environ.update(SETTINGS)
    transformers = import_module("transformers")
    given = {"dtype": torch.float32, "trust_remote_code": True, "attn_implementation": "eager"}
    plain = transformers.AutoModelForCausalLM.from_pretrained(job["folder"], **given).eval()
    distributed.init_process_group("gloo")
    model = _served(plain, job)
    worst = 0.0
    for tokens in TOKENS:
        ids = torch.tensor(tokens)
        with torch.no_grad():
            wanted = plain(input_ids=ids[None], use_cache=False).logits[0]
            got = model.forward(ids, torch.arange(len(tokens)), SimpleNamespace())
        worst = max(worst, float((got - wanted).abs().max()) if got.shape == wanted.shape else float("inf"))
    apart: list[float] = [0.0] * WORLD
    distributed.all_gather_object(apart, worst)
    if RANK == 0:
        Path(job["out"]).write_text(json.dumps({"differences": {"logits": max(apart)}}))
    distributed.barrier()
    os._exit(0)


def _served(plain: Any, job: dict[str, Any]) -> Any:
    """The reader's model of the checkpoint, by the plan, with this rank's part of the weights."""
    reader = _reader()
    config = type(plain.config).from_pretrained(job["folder"])
    prefix = f"{plain.base_model_prefix}." if plain.base_model is not plain else ""
    plan = {key.removeprefix(prefix): style for key, style in job["plan"].items() if key.startswith(prefix)}
    config.base_model_tp_plan = plan
    model = reader.TransformersForCausalLM(config).eval()  # as SGLang's loader returns it
    known = dict(plain.base_model.named_parameters(remove_duplicate=False))
    for name, parameter in model.model.named_parameters(remove_duplicate=False):
        _fill(parameter, known[name])
    if getattr(plain.get_output_embeddings(), "bias", None) is not None:
        raise ValueError("the bias of the head has no place in SGLang's model")
    _fill(model.lm_head.weight, plain.get_output_embeddings().weight)
    return model


def _fill(parameter: nn.Parameter, whole: Tensor) -> None:
    """Copy this rank's part of a weight."""
    dim = getattr(parameter, "cut", None)
    part = whole if dim is None else whole.narrow(dim, *_rows(whole.shape[dim], parameter.shape[dim]))
    part = functional.pad(part, (0, 0, 0, parameter.shape[0] - part.shape[0])) if dim == 0 and part.ndim == 2 else part
    if part.shape != parameter.shape:
        raise ValueError(f"a parameter of {list(parameter.shape)} gets a weight of {list(part.shape)}")
    parameter.data.copy_(part)


def _rows(whole: int, held: int) -> tuple[int, int]:
    """Where this rank's part begins, and how much of it there is: the last may be filled up."""
    begins = min(RANK * held, whole)
    return begins, min(held, whole - begins)


def _reader() -> Any:
    """SGLang's file, executed with what is below in the place of SGLang's layers."""
    package = util.find_spec("sglang")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("there is no package sglang in this environment")
    file = Path(package.submodule_search_locations[0]) / "srt" / "models" / "transformers.py"
    sys.meta_path.insert(0, _Answers(ANSWERS))
    spec = util.spec_from_file_location("shardproof_reader", file)
    assert spec is not None and spec.loader is not None, "a path of a Python file was given"
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Answers:
    """Finds every module `sglang...`: with the names that are given for it, and mocks for all others."""

    def __init__(self, given: dict[str, dict[str, object]]) -> None:
        self.given = given

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        del path, target
        return util.spec_from_loader(name, self, is_package=True) if name.split(".")[0] == "sglang" else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> ModuleType:
        module = ModuleType(spec.name)
        vars(module).update(self.given.get(spec.name, {}))
        vars(module)["__getattr__"] = lambda name: _mock(spec.name, name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to execute."""


def _mock(module: str, name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock(name=f"{module}.{name}")


def _parameter(*shape: int, cut: int | None) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(*shape), requires_grad=False)
    parameter.cut = cut  # type: ignore[attr-defined]  # the dim along which ranks have parts
    return parameter


def _divide(whole: int, parts: int = WORLD) -> int:
    """As `sglang.srt.distributed.divide`: an assertion where there is a remainder."""
    assert whole % parts == 0, f"{whole} is not divisible by {parts}"
    return whole // parts


def _gathered(part: Tensor) -> Tensor:
    parts = [torch.empty_like(part) for _ in range(WORLD)]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts, dim=-1)


def _summed(part: Tensor) -> Tensor:
    whole = part.contiguous().clone()
    distributed.all_reduce(whole)
    return whole


class _Column(nn.Module):
    def __init__(self, input_size: int, output_size: int, bias: bool = True, gather_output: bool = False, **_: object):
        super().__init__()
        self.gather_output = gather_output
        self.weight = _parameter(_divide(output_size), input_size, cut=0)
        self.bias = _parameter(_divide(output_size), cut=0) if bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        found = functional.linear(x, self.weight, self.bias)
        return (_gathered(found) if self.gather_output else found), None


class _Row(nn.Module):
    def __init__(
        self, input_size: int, output_size: int, bias: bool = True, input_is_parallel: bool = True, **_: object
    ):
        super().__init__()
        self.input_is_parallel = input_is_parallel
        self.weight = _parameter(output_size, _divide(input_size), cut=1)
        self.bias = _parameter(output_size, cut=None) if bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        part = x if self.input_is_parallel else x.chunk(WORLD, -1)[RANK]
        return _summed(functional.linear(part, self.weight, self.bias if RANK == 0 else None)), None


class _Replicated(nn.Module):
    def __init__(self, input_size: int, output_size: int, bias: bool = True, **_: object):
        super().__init__()
        self.weight = _parameter(output_size, input_size, cut=None)
        self.bias = _parameter(output_size, cut=None) if bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return functional.linear(x, self.weight, self.bias), None


class _Table(nn.Module):
    """Rows of the vocabulary, filled up to a multiple of 64 with rows of zeros."""

    def __init__(self, num_embeddings: int, embedding_dim: int, **_: object):
        super().__init__()
        self.vocabulary = num_embeddings
        self.weight = _parameter(_divide(-(-num_embeddings // 64) * 64), embedding_dim, cut=0)

    def forward(self, ids: Tensor) -> Tensor:
        own = ids - RANK * self.weight.shape[0]
        held = (own >= 0) & (own < self.weight.shape[0])
        return _summed(functional.embedding(own * held, self.weight) * held[..., None])


class _Norm(nn.Module):
    """A norm by root mean square; `zero` where the weight is added to one."""

    zero = False

    def __init__(self, hidden_size: int, eps: float = 1e-6, has_weight: bool = True, **_: object):
        super().__init__()
        self.eps, self.width = eps, hidden_size
        self.weight = _parameter(hidden_size, cut=None) if has_weight else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.width:
            raise ValueError(f"a norm of {self.width} gets {list(x.shape)}")
        found = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return found if self.weight is None else found * (self.weight + 1 if self.zero else self.weight)


class _NormAboutOne(_Norm):
    zero = True


class _Attention(nn.Module):
    """`RadixAttention` of one sequence: this rank's heads, causal, with the window where one is given."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        scaling: float,
        num_kv_heads: int,
        sliding_window_size: int = -1,
        is_cross_attention: bool = False,
        **_: object,
    ):
        super().__init__()
        self.heads, self.kv, self.head_dim, self.scaling = num_heads, num_kv_heads, head_dim, scaling
        self.window, self.causal = sliding_window_size, not is_cross_attention

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        tokens = q.shape[0]
        query, key, value = (
            one.reshape(-1, heads, self.head_dim).transpose(0, 1)
            for one, heads in ((q, self.heads), (k, self.kv), (v, self.kv))
        )
        at = torch.arange(tokens)
        seen = (at[:, None] >= at[None, :]) if self.causal else torch.ones(tokens, tokens, dtype=torch.bool)
        if self.window > 0:
            seen = seen & (at[:, None] - at[None, :] <= self.window)
        found = functional.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=seen, scale=self.scaling, enable_gqa=self.heads != self.kv
        )
        return found[0].transpose(0, 1).reshape(tokens, -1)


class _Logits(nn.Module):
    """`LogitsProcessor`: the head over the vocabulary of all ranks, a factor, a soft-cap."""

    def __init__(self, config: Any, logit_scale: float = 1.0):
        super().__init__()
        self.scale, self.cap = logit_scale, getattr(config, "final_logit_softcapping", None)

    def forward(self, ids: Tensor, states: Tensor, head: _Table, *_: object) -> Tensor:
        del ids
        found = _gathered(functional.linear(states, head.weight))[..., : head.vocabulary] * self.scale
        return torch.tanh(found / self.cap) * self.cap if self.cap else found


_SINGLE = SimpleNamespace(world_size=1, rank_in_group=0, is_first_rank=True, is_last_rank=True)
_PARALLEL = SimpleNamespace(tp_size=WORLD, tp_rank=RANK, moe_ep_size=1, pp_group=_SINGLE)
ANSWERS: dict[str, dict[str, object]] = {
    "sglang.srt.distributed": {"divide": _divide},
    "sglang.srt.layers.layernorm": {"RMSNorm": _Norm, "GemmaRMSNorm": _NormAboutOne},
    "sglang.srt.layers.linear": {
        "ColumnParallelLinear": _Column,
        "RowParallelLinear": _Row,
        "ReplicatedLinear": _Replicated,
    },
    "sglang.srt.layers.logits_processor": {"LogitsProcessor": _Logits},
    "sglang.srt.layers.radix_attention": {"RadixAttention": _Attention},
    "sglang.srt.layers.utils": {"PPMissingLayer": nn.Identity},
    "sglang.srt.layers.vocab_parallel_embedding": {"ParallelLMHead": _Table, "VocabParallelEmbedding": _Table},
    "sglang.srt.runtime_context": {"get_parallel": lambda: _PARALLEL},
    "sglang.srt.utils": {"get_device": lambda: "cpu"},
    "sglang.srt.utils.hf_transformers_utils": {"get_hf_text_config": lambda config: config.get_text_config()},
}
"""What the reader imports and uses, by module."""


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text())
    try:
        main(read)
    except BaseException as error:
        text = {"error": f"{type(error).__name__}: {error}", "rank": RANK, "trace": traceback.format_exc()[-6000:]}
        Path(f"{read['out']}.{RANK}").write_text(json.dumps(text))
        os._exit(1)
