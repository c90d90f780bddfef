"""The stages that Transformers' pipeline runtime makes, whatever the plan says.

Source: Transformers 5.16 to 5.24, `distributed/pipeline_parallel.py`, `apply_pipeline_parallelism`: `layers` of the base model is
split evenly, by the library's own `layer_range_for_rank`; `embed_tokens`, `norm`, `lm_head` and the layers of other stages become
identities; received hidden states are given to the model as `inputs_embeds`, so all other code of its forward runs again.
"""

from dataclasses import dataclass
from functools import wraps

import torch
from torch import nn
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from shardproof.planner.inputs.example import example_inputs
from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.plan import join
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.trace import trace
from shardproof.planner.transformers_facts.stages import layers_of_stage
from shardproof.verify.clients.dialect import Dialect
from shardproof.verify.clients.stages.runtime import compare_stages, received_inputs
from shardproof.verify.findings import be433


def check_even_stages(dialect: Dialect, loaded: LoadedModel, stages: int) -> tuple[Finding, ...]:
    """Finding BE433 where a stage's program is not its part of the whole program; only the first such stage is reported."""
    model = build(loaded)
    prefix = base_prefix(model)
    base = model.get_submodule(prefix)
    layers = getattr(base, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return (be433.no_even_split(dialect.name, f"no list `layers` in {type(base).__name__}"),)
    if len(layers) < stages:
        return (be433.no_even_split(dialect.name, "fewer layers than stages"),)
    stack, depth = join(prefix, "layers"), len(layers)
    runtime, graph = EvenSplit(prefix), trace(model)
    return tuple(compare_stages(runtime, dialect.name, loaded, graph, stack=stack, depth=depth, stages=stages))


@dataclass(frozen=True, slots=True)
class EvenSplit:
    """The runtime's cuts through the base model at `prefix`."""

    prefix: str

    def own(self, count: int, stage: int, stages: int) -> range:
        """The layers that the installed library deals to a stage."""
        return layers_of_stage(count, stage, stages)

    def cut(self, model: nn.Module, own: range, *, first: bool, last: bool) -> None:
        """What `apply_pipeline_parallelism` does to the modules of one stage."""
        base = model.get_submodule(self.prefix)
        layers = base.layers
        assert isinstance(layers, nn.ModuleList)
        if not first and not (last and getattr(model.config, "tie_word_embeddings", False)):
            base.embed_tokens = PipelineIdentityLayer()
        for number in range(len(layers)):
            if number not in own:
                layers[number] = PipelineIdentityLayer()
        if not last:
            base.norm = PipelineIdentityLayer()
            model.lm_head = PipelineIdentityLayer()
            vars(model)["forward"] = wraps(base.forward)(lambda *args, **kwargs: base(*args, **kwargs))

    def inputs(self, model: nn.Module, *, first: bool) -> dict[str, torch.Tensor]:
        """The example inputs, or what a later stage receives."""
        return example_inputs(model) if first else received_inputs(model)
