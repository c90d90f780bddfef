"""The programs of stages against the whole program: right ones are parts of it, and every mistake of a runtime is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from shardproof.planner.inference.pipeline import infer_pipeline
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.twin import twin
from shardproof.verify.proof.stages import Programs
from shardproof.verify.stages.case import Case, Schedule, Staging
from shardproof.verify.stages.cutting import laid_out
from tests.mutants.injected_faults import FaultKind, InjectedFault, InjectedFaults
from tests.mutants.stage_operators import StagedModel, stage_mutants
from tests.versions import wants_type

Found = Callable[[str, InjectedFault], str]


@cache
def subject(name: str) -> tuple[Programs, Case]:
    """A type's twin with the plan that is inferred of it, at two stages."""
    loaded = load(name, overrides={"embedding_multiplier": "12.0"} if name == "granite" else {})
    model = build(loaded)
    base, head = infer_pipeline(model, trace(model))
    small = twin(loaded, tp=1, pp=2)
    return Programs(small), Case(small, Plan(pp=base, head_pp=head), 1, 2)


def said(name: str, *faults: InjectedFault, rounds: int = 1) -> list[str]:
    """The messages about a stage program with these mistakes."""
    programs, case = subject(name)
    schedule = Schedule.GPIPE if rounds == 1 else Schedule.INTERLEAVED
    found = programs.check(replace(case, staging=Staging(schedule, rounds, faults=InjectedFaults(faults)))).findings
    assert all(finding.code == "PP305" for finding in found)
    return [finding.message for finding in found]


@pytest.mark.parametrize("name", ["granite", "opt", "gemma3_text", "jamba", "bart"])
def test_right_stages_are_parts_of_the_whole_program(name: str) -> None:
    assert said(name) == []


ZAMBA2 = [("linear_attention", "hybrid")[at in (6, 12, 18, 24)] for at in range(26)]


@pytest.mark.parametrize(
    ("name", "fewer"),
    [
        pytest.param("hy_v4", {"num_hidden_layers": "6"}, marks=wants_type("hy_v4")),
        ("nemotron_h", {}),
        ("openai-gpt", {}),
        ("zamba2", {"num_hidden_layers": "26", "layer_types": json.dumps(ZAMBA2)}),
    ],
)
def test_right_stages_of_wide_models_are_parts_of_the_whole_program(name: str, fewer: dict[str, str]) -> None:
    """What is handed through, found in data, shared or given twice."""
    loaded = load(name, overrides=fewer)
    base, head = infer_pipeline(model := build(loaded), trace(model))
    assert Programs(loaded).check(Case(loaded, Plan(pp=base, head_pp=head), 1, 2)).findings == ()


def test_what_a_layer_leaves_in_a_dictionary_is_put_there() -> None:
    loaded = load("tests.zoo.stream_models:StreamForCausalLM", overrides={"mix": "shelf"})
    base, head = infer_pipeline(model := build(loaded), trace(model))
    assert base[1].inputs == ("w", "shelf")
    assert Programs(loaded).check(Case(loaded, Plan(pp=base, head_pp=head), 1, 3)).findings == ()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            InjectedFault(FaultKind.PREAMBLE_AGAIN, "model.embed_tokens"),
            "stage 1 applies aten.mul of model to what model.layers.2 takes as hidden_states",
        ),
        (
            InjectedFault(FaultKind.PREAMBLE_SKIPPED, "model.embed_tokens", stage=0),
            "stage 0 does not give model.layers.0 the hidden_states of the whole model",
        ),
        (InjectedFault(FaultKind.MODULE_APPLIED, "model.norm", stage=0), "stage 0 runs aten.pow of model.norm"),
        (
            InjectedFault(FaultKind.ARGUMENT_NOT_PASSED, "attention_mask"),
            "stage 1 does not give model.layers.2 the attention_mask of the whole model",
        ),
        (
            InjectedFault(FaultKind.ARGUMENT_NOT_PASSED, "position_embeddings"),
            "stage 1 raises: TypeError: cannot unpack non-iterable NoneType object",
        ),
        (
            InjectedFault(FaultKind.INPUT_NOT_PASSED, "attention_mask"),
            "stage 1 applies aten.slice of model to what model.layers.2 takes as attention_mask",
        ),
        (InjectedFault(FaultKind.INPUT_NOT_PASSED, "logits_to_keep"), "stage 1 runs linear of lm_head"),
        (InjectedFault(FaultKind.LOCAL_INDEX), "stage 1 numbers model.layers.2.self_attn 0 in the cache"),
        (InjectedFault(FaultKind.FROZEN), "stage 1 takes no gradient for model.layers.2.self_attn.q_proj.weight"),
    ],
)
def test_a_mistake_of_a_stage_is_named(fault: InjectedFault, message: str) -> None:
    assert said("granite", fault) == [message]


@pytest.mark.parametrize(("name", "messages"), [("mamba", 0), ("qwen3_next", 1), ("opt", 1)])
def test_a_place_in_a_cache_matters_where_entries_grow(name: str, messages: int) -> None:
    assert len(said(name, InjectedFault(FaultKind.LOCAL_INDEX))) == messages


@pytest.mark.parametrize(("name", "messages"), [("position_bias", 1), ("encoder_decoder_position_bias", 0)])
def test_a_layer_may_make_what_it_is_not_handed(name: str, messages: int) -> None:
    """T5's first layer alone has a table of positions; what it hands on for the encoder's is the mask, which all have."""
    assert len(said("t5", InjectedFault(FaultKind.ARGUMENT_NOT_PASSED, name))) == messages


@pytest.mark.parametrize("name", ["position_ids"])
def test_what_no_layer_reads_need_not_be_passed(name: str) -> None:
    assert said("granite", InjectedFault(FaultKind.ARGUMENT_NOT_PASSED, name)) == []


def test_weights_with_two_names() -> None:
    untied = said("opt", InjectedFault(FaultKind.UNTIED, "lm_head.weight"))
    assert untied == ["stage 1 runs linear of lm_head"]
    unsummed = said("opt", InjectedFault(FaultKind.GRADIENT_NOT_SUMMED, "model.decoder.embed_tokens.weight"))
    assert unsummed == ["the gradient of model.decoder.embed_tokens.weight is not summed over stages 0 and 1"]


def test_what_changes_nothing_is_not_accused() -> None:
    """Positions that a stage lacks are zeros; a model that keeps no cache needs no numbers for it."""
    assert said("opt", InjectedFault(FaultKind.PREAMBLE_AGAIN, "model.decoder.embed_tokens")) == []
    assert said("bert", InjectedFault(FaultKind.LOCAL_INDEX)) == []


def test_positions_added_again() -> None:
    again = (
        InjectedFault(FaultKind.PREAMBLE_AGAIN, "model.decoder.embed_tokens"),
        InjectedFault(FaultKind.MODULE_KEPT, "model.decoder.embed_positions"),
    )
    (message,) = said("opt", *again)
    assert message == "stage 1 applies aten.add of model.decoder to what model.decoder.layers.2 takes as hidden_states"


def test_a_layer_that_is_given_the_mask_of_another_kind() -> None:
    programs, case = subject("gemma3_text")
    layout = laid_out(case, programs.model).layout
    (kind,) = [
        mutant
        for mutant in stage_mutants(StagedModel(programs.model, programs.graph, layout))
        if mutant.operator.startswith("P6") and mutant.faults[0].what == "attention_mask"
    ]
    (message,) = said("gemma3_text", *kind.faults)
    assert message == (
        f"stage 1 does not give model.layers.{kind.faults[0].layer} the attention_mask of the whole model"
    )


def test_two_stages_in_each_others_place() -> None:
    swapped = InjectedFault(FaultKind.WRONG_PEER, stage=-1, layer=1, other=2)
    assert InjectedFaults((swapped,)).order(4) == (0, 2, 1, 3)
    assert said("granite", swapped, rounds=2) == ["stage 2 receives what another stage needs"]
