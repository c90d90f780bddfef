"""What a trace patches and changes is given back, however it ends, and nobody else sees it changed."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from shardproof.planner.loading.load import load
from shardproof.planner.propagation.assign import assign
from shardproof.planner.tracing.programs import local_program, on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.session import private_copy
from shardproof.planner.tracing.trace import trace

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 128,
}


def patched() -> tuple[object, ...]:
    """Everything of torch that a trace patches, as it is now."""
    return (
        vars(nn.Module)["__call__"],
        torch.is_grad_enabled,
        torch._C._set_grad_enabled,
        vars(torch.inference_mode)["__enter__"],
        vars(torch.autocast)["__init__"],
        torch.distributions.Distribution._validate_args,
    )


class Waiting(nn.Module):
    """Runs something in the middle of its forward."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self.config = LlamaConfig()
        self.then = then

    def forward(self, input_ids: Tensor) -> Tensor:
        self.then()
        return input_ids + 1


IDS = {"input_ids": torch.empty((2, 3), dtype=torch.long, device="meta")}


def test_two_overlapping_traces_in_two_threads_leave_nothing_patched() -> None:
    before = patched()
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        inside.set()
        go_on.wait(20)

    threads = [threading.Thread(target=trace, args=(Waiting(then), IDS)) for then in (first, lambda: None)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert patched() == before


def test_a_trace_inside_a_trace_gives_back_what_it_found() -> None:
    before = patched()
    graph = trace(Waiting(lambda: trace(Waiting(lambda: None), IDS)), IDS)
    assert patched() == before
    assert [op.target for op in graph.ops][-1] == "aten.add"


def test_a_forward_that_fails_leaves_nothing_patched() -> None:
    def fail() -> None:
        raise KeyError("no")

    before = patched()
    with pytest.raises(TraceError, match="KeyError"):
        trace(Waiting(fail), IDS)
    assert patched() == before


def test_the_shared_model_is_never_seen_changed() -> None:
    model = on_meta(load("llama", overrides=SMALL))
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    shapes = {name: value.shape for name, value in model.named_parameters()}
    subject = subject_of(model)
    styles = {"up_proj": "colwise", "gate_proj": "colwise", "down_proj": "rowwise"}
    patterns = {f"model.layers.*.mlp.{name}": style for name, style in styles.items()}
    assigned = assign(subject.graph, patterns, base_prefix="model")
    local_program(model, assigned, 2)
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == before
    assert {name: value.shape for name, value in model.named_parameters()} == shapes
    with private_copy(model) as own:
        assert not {id(module) for module in own.modules()} & {id(module) for module in model.modules()}
        assert [id(value) for value in own.parameters()] == [id(value) for value in model.parameters()]
