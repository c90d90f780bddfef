"""The stages of Transformers' pipeline runtime against the whole program: what it does again, leaves out, or cannot run."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import nn
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from shardproof.planner.inference.pipeline import infer_pipeline
from shardproof.planner.ir.findings import Fault, Finding
from shardproof.planner.ir.numbering import Numbers, numbered
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from shardproof.planner.transformers_facts.version import is_least
from shardproof.planner.twins.twin import twin
from shardproof.verify.clients.check import check
from shardproof.verify.clients.stages.keyed import KeyedSplit, check_keyed_stages
from shardproof.verify.clients.transformers.dialect import TRANSFORMERS
from shardproof.verify.clients.transformers.even_stages import EvenSplit, check_even_stages
from shardproof.verify.clients.vllm.dialect import VLLM_0_32
from tests.versions import wants_type

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
        ("granite", "stage 1 of {client} applies aten.mul of model to what it received."),
        ("gpt_neox", "stage 0 of {client} applies layer_norm of gpt_neox.final_layer_norm."),
        ("nanochat", "stage 0 of {client} does not apply aten.pow of model.norm."),
        ("falcon", "{client} makes no stages of this model: no list `layers` in FalconModel."),
    ],
)
def test_what_the_runtime_does_wrong_is_named_and_is_its_own_fault(name: str, message: str) -> None:
    (finding,) = found(name)
    assert (finding.code, finding.fault) == ("BE433", Fault.CLIENT)
    assert finding.message == message.format(client=TRANSFORMERS.name)


def keyed(name: str, change: Callable[[Plan], Plan] = lambda plan: plan) -> list[Finding]:
    """What the proof says of two stages as vLLM makes them of the inferred plan."""
    loaded = load(name)
    model = build(loaded)
    base, head = infer_pipeline(model, trace(model))
    return list(check_keyed_stages(VLLM_0_32, loaded, change(Plan(pp=base, head_pp=head)), 2))


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere2"])
def test_stages_by_keys_that_are_the_whole_program_in_parts(name: str) -> None:
    assert keyed(name) == []
    assert keyed(name, lambda _: Plan()) == []


@pytest.mark.parametrize(
    ("name", "change", "fault", "message"),
    [
        # Measured on vLLM 0.32 at PP 2 without a plan: 8.4 nats off.
        (
            "opt",
            lambda _: Plan(),
            Fault.CLIENT,
            "stage 0 of vllm 0.32 applies layer_norm of model.decoder.final_layer_norm.",
        ),
        (
            "opt",
            lambda plan: plan,
            Fault.CLIENT,
            "stage 1 of vllm 0.32 applies aten.add of model.decoder to what it received.",
        ),
        (
            "llama",
            lambda plan: replace(plan, pp=plan.pp[:2]),
            Fault.PLAN,
            "stage 0 of vllm 0.32 applies aten.pow of model.norm.",
        ),
        (
            "llama",
            lambda plan: replace(plan, pp=(plan.pp[0], plan.pp[2], plan.pp[1])),
            Fault.PLAN,
            "stage 0 of vllm 0.32 applies aten.pow of model.norm.",
        ),
        # Layers that return a tuple: an identity's first row is taken for its first result.
        (
            "bloom",
            lambda plan: plan,
            Fault.CLIENT,
            "stage 0 of vllm 0.32 applies aten.select of transformer.",
        ),
    ],
)
def test_what_an_engine_does_wrong_with_keys_is_named(
    name: str, change: Callable[[Plan], Plan], fault: Fault, message: str
) -> None:
    (finding,) = keyed(name, change)
    assert (finding.code, finding.fault, finding.message) == ("BE433", fault, message)


def test_an_embedding_that_is_kept_to_the_last_rank() -> None:
    (finding,) = keyed("llama", lambda plan: replace(plan, pp=(*plan.pp[1:], plan.pp[0])))
    assert (finding.code, finding.fault) == ("BE433", Fault.PLAN)
    assert finding.message.startswith("stage 0 of vllm 0.32 raises: ")


def test_layers_are_dealt_out_as_the_engine_does() -> None:
    """Source: vLLM 0.32.0, `get_pp_indices`: 7 layers on 3 ranks are 2, 3, 2."""
    cut = KeyedSplit("model", (), "layers", (), keeps_tied=True)
    assert [len(cut.own(7, stage, 3)) for stage in range(3)] == [2, 3, 2]
    assert [len(cut.own(9, stage, 2)) for stage in range(2)] == [5, 4]


def test_a_multiplier_of_one_that_is_applied_again_changes_nothing() -> None:
    assert not check_even_stages(TRANSFORMERS, load("granite"), 2)


def test_the_same_program_has_the_same_numbers_and_a_changed_one_has_not() -> None:
    numbers = Numbers()
    graphs = [trace(build(load("llama", overrides={"rms_norm_eps": eps}))) for eps in ("1e-6", "1e-6", "1e-5")]
    one, same, other = (numbered(graph, numbers, stack="model.layers") for graph in graphs)
    ends = [numbers_of.number[numbers_of.graph.outputs[0][1]] for numbers_of in (one, same, other)]
    assert ends[0] == ends[1] != ends[2]


def test_stages_are_cut_as_the_installed_runtime_cuts_them() -> None:
    """Source: `PipelineStage.layer_range_for_rank` of 5.23.0 and 5.24.0, `PipelineIdentityLayer`."""
    first_ranks = is_least((5, 24))
    wanted = [(0, 11), (11, 22), (22, 32)] if first_ranks else [(0, 10), (10, 20), (20, 32)]
    dealt = [EvenSplit("model").own(32, rank, 3) for rank in range(3)]
    assert [(one.start, one.stop) for one in dealt] == wanted
    model = build(load("llama"))
    EvenSplit("model").cut(model, range(10, 20), first=False, last=False)
    replaced = [path for path, module in model.named_modules() if isinstance(module, PipelineIdentityLayer)]
    assert replaced[:2] == ["model.embed_tokens", "model.layers.0"]
    assert replaced[-2:] == ["model.norm", "lm_head"]
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    assert [number for number, layer in enumerate(layers) if not isinstance(layer, PipelineIdentityLayer)] == [
        *range(10, 20)
    ]


def test_a_base_model_whose_forward_names_nothing_is_asked_by_ids() -> None:
    loaded = load("trocr")
    found = check_keyed_stages(VLLM_0_32, loaded, Plan(), 2)
    assert [finding.code for finding in found] == ["BE433"]


def test_more_layers_than_there_are_cannot_be_dealt_out() -> None:
    """LongCat-Flash counts its attentions, of which a layer has two."""
    (found,) = check_keyed_stages(VLLM_0_32, load("longcat_flash"), Plan(), 2)
    assert found.found == "num_hidden_layers = 56"
    assert found.fault is Fault.MODEL


@pytest.mark.parametrize("name", ["gemma4_text", pytest.param("dots3_note_text", marks=wants_type("dots3_note_text"))])
def test_a_config_whose_layers_have_heads_of_their_own_is_read(name: str) -> None:
    assert len(check(twin(load(name), tp=2, pp=2)).levels) == 5
