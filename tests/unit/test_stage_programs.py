"""The stages of Transformers' pipeline runtime against the whole program: what it does again, leaves out, or cannot run."""

import pytest
from torch import nn
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer, PipelineStage

from planner.frontend.load import build, load
from planner.frontend.trace import trace
from planner.ir.findings import Fault, Finding
from planner.ir.numbering import Numbers, numbered
from verify.backends.stage_programs import _cut, check_even_stages
from verify.backends.transformers import TRANSFORMERS

SCALED = {"granite": {"embedding_multiplier": "12.0"}}


def found(name: str, stages: int = 2) -> list[Finding]:
    return list(check_even_stages(TRANSFORMERS, load(name, overrides=SCALED.get(name, {})), stages))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_stages_that_are_the_whole_program_in_parts(name: str) -> None:
    assert found(name, 2) == []
    assert found(name, 4) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("granite", "stage 1 of transformers 5.23 applies aten.mul of model to what it received."),
        ("gpt_neox", "stage 0 of transformers 5.23 applies layer_norm of gpt_neox.final_layer_norm."),
        ("nanochat", "stage 0 of transformers 5.23 does not apply aten.pow of model.norm."),
        ("falcon", "transformers 5.23 makes no stages of this model: no list `layers` in FalconModel."),
    ],
)
def test_what_the_runtime_does_wrong_is_named_and_is_its_own_fault(name: str, message: str) -> None:
    (finding,) = found(name)
    assert (finding.code, finding.fault, finding.message) == ("BE433", Fault.CLIENT, message)


def test_a_multiplier_of_one_that_is_applied_again_changes_nothing() -> None:
    assert not check_even_stages(TRANSFORMERS, load("granite"), 2)


def test_the_same_program_has_the_same_numbers_and_a_changed_one_has_not() -> None:
    numbers = Numbers()
    graphs = [trace(build(load("llama", overrides={"rms_norm_eps": eps}))) for eps in ("1e-6", "1e-6", "1e-5")]
    one, same, other = (numbered(graph, numbers, stack="model.layers") for graph in graphs)
    ends = [numbers_of.number[numbers_of.graph.outputs[0][1]] for numbers_of in (one, same, other)]
    assert ends[0] == ends[1] != ends[2]


def test_stages_are_cut_as_the_installed_runtime_cuts_them() -> None:
    """Source: transformers 5.23.0, `PipelineStage.layer_range_for_rank`, `PipelineIdentityLayer`."""
    runtime = object.__new__(PipelineStage)
    runtime.pp_size = 3
    assert [runtime.layer_range_for_rank(rank, 32) for rank in range(3)] == [(0, 10), (10, 20), (20, 32)]
    model = build(load("llama"))
    _cut(model, "model", range(10, 20), first=False, last=False)
    replaced = [path for path, module in model.named_modules() if isinstance(module, PipelineIdentityLayer)]
    assert replaced[:2] == ["model.embed_tokens", "model.layers.0"]
    assert replaced[-2:] == ["model.norm", "lm_head"]
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    assert [number for number, layer in enumerate(layers) if not isinstance(layer, PipelineIdentityLayer)] == [
        *range(10, 20)
    ]
