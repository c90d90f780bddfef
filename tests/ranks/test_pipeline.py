"""Pipeline plans on ranks: right ones are confirmed, wrong ones refuted, ones that make no pipeline refused."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.inference.pipeline import infer_pipeline
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan, PpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.twin import twin
from shardproof.verify.report.report import LevelResult
from shardproof.verify.stages.case import Case, Schedule, Staging
from shardproof.verify.stages.record import recorded
from shardproof.verify.stages.stage_layout import StageLayout, dealt, layout_of, moved
from shardproof.verify.stages.weights import drop, untie
from tests.mutants.injected_faults import FaultKind, InjectedFault, InjectedFaults

pytestmark = pytest.mark.timeout(200)

CARRIED = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox", "mixtral", "deepseek_v3")
BY_HAND = {
    "opt": ("decoder.embed_tokens", "decoder.embed_positions", "decoder.layers", "decoder.final_layer_norm"),
    "falcon": ("word_embeddings", "h", "ln_f"),
}
QUANTITIES = {"logits", "left-padded logits", "kept logits", "decoded logits", "loss", "gradient"}


def entries(*modules: str) -> tuple[PpEntry, ...]:
    return tuple(PpEntry(module, ("hidden_states",), ("hidden_states",)) for module in modules)


def carried(name: str) -> Plan:
    loaded = load(name)
    return carried_plan(loaded, build(loaded))


def staged(name: str, *modules: str, tp: int = 1) -> Case:
    """A case on two stages, with the plan that the model carries unless modules are given."""
    plan = Plan(pp=entries(*modules), head_pp=entries("lm_head")) if modules else carried(name)
    return Case(twin(load(name), tp=tp, pp=2), plan, tp, 2)


def asked(cases: Mapping[str, Case]) -> dict[str, LevelResult]:
    return dict(zip(cases, confirm_cases(tuple(cases.values()), timeout=150, engine="inprocess"), strict=True))


@pytest.fixture(scope="module")
def results() -> dict[str, LevelResult]:
    """Many cases, on ranks that are threads; that real ranks say the same is tests/ranks/test_inprocess.py."""
    llama = carried("llama")
    unread = replace(llama, pp=tuple(replace(e, inputs=("x",)) if e.module == "layers" else e for e in llama.pp))
    return asked(
        {
            **{name: staged(name) for name in CARRIED},
            **{name: staged(name, *modules) for name, modules in BY_HAND.items()},
            "positions left out": staged("opt", "decoder.embed_tokens", "decoder.layers", "decoder.final_layer_norm"),
            "another name for the hidden states": replace(staged("llama"), plan=unread),
            "norm first": staged("llama", "embed_tokens", "norm", "layers"),
            "embedding last": staged("llama", "layers", "embed_tokens", "norm"),
            "no such module": staged("llama", "embed_tokens", "blocks", "norm"),
            "no layers": staged("llama", "embed_tokens", "norm"),
        }
    )


@pytest.mark.parametrize("name", [*CARRIED, *BY_HAND])
def test_right_plans_are_confirmed(results: Mapping[str, LevelResult], name: str) -> None:
    result = results[name]
    assert result.verdict is Verdict.CONFIRMED
    assert set(result.measures) == QUANTITIES
    assert max(result.measures.values()) < 1e-12


@pytest.mark.parametrize("name", ["positions left out", "another name for the hidden states"])
def test_what_no_entry_names_runs_on_every_stage(results: Mapping[str, LevelResult], name: str) -> None:
    assert results[name].verdict is Verdict.CONFIRMED


@pytest.mark.parametrize("name", ["norm first", "embedding last"])
def test_a_wrong_order_is_refuted(results: Mapping[str, LevelResult], name: str) -> None:
    assert results[name].verdict is Verdict.REFUTED
    assert results[name].findings[0].code == "DY501"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such module", "The pipeline plan names 'model.blocks', but LlamaForCausalLM has no such module."),
        ("no layers", "A pipeline plan must name the ModuleList of the layers; this one names none."),
    ],
)
def test_a_plan_that_makes_no_pipeline_is_refused(results: Mapping[str, LevelResult], name: str, message: str) -> None:
    (finding,) = results[name].findings
    assert finding.message == f"every rank failed in pipeline: ValueError: {message}"


def test_stages_of_tensor_parallel_ranks() -> None:
    """Tied embeddings (gemma2), gradients that the client reduces in place (qwen3), packed experts (mixtral)."""
    names = ("llama", "qwen3", "gemma2", "mixtral")
    for result in asked({name: staged(name, tp=2) for name in names}).values():
        assert result.verdict is Verdict.CONFIRMED
        assert set(result.measures) == QUANTITIES
        assert max(result.measures.values()) < 1e-12


STAGINGS = {
    "1F1B": ("llama", Staging(Schedule.ONE_F_ONE_B)),
    "interleaved, tied": ("gemma2", Staging(Schedule.INTERLEAVED, rounds=2)),
    "uneven, interleaved": ("mixtral", Staging(Schedule.INTERLEAVED, 2, (2, 3, 6))),
}
FAULTS = {
    "a layer too much": Staging(faults=InjectedFaults(overlap=1)),
    "a layer too few": Staging(bounds=(3,), faults=InjectedFaults(overlap=-1)),
}


@pytest.fixture(scope="module")
def staged_otherwise() -> dict[str, LevelResult]:
    """Other schedules and other cuts."""
    found = {name: (model, staging) for name, (model, staging) in STAGINGS.items()}
    found |= {name: ("llama", staging) for name, staging in FAULTS.items()}
    cases = {}
    for name, (model, staging) in found.items():
        base, head = infer_pipeline(built := build(load(model)), trace(built))
        small = twin(load(model), tp=1, pp=2 * staging.rounds)
        cases[name] = Case(small, Plan(pp=base, head_pp=head), 1, 2, staging=staging)
    return asked(cases)


@pytest.mark.parametrize("name", STAGINGS)
def test_other_schedules_and_cuts_are_confirmed(staged_otherwise: Mapping[str, LevelResult], name: str) -> None:
    result = staged_otherwise[name]
    assert result.verdict is Verdict.CONFIRMED
    assert set(result.measures) == QUANTITIES
    assert max(result.measures.values()) < 1e-12


@pytest.mark.parametrize("name", FAULTS)
def test_a_layer_too_much_or_too_few_is_refuted(staged_otherwise: Mapping[str, LevelResult], name: str) -> None:
    assert staged_otherwise[name].verdict is Verdict.REFUTED
    assert staged_otherwise[name].findings[0].code == "DY501"


RUNTIME_FAULTS = {
    "preamble again": InjectedFault(FaultKind.PREAMBLE_AGAIN, "model.embed_tokens"),
    "no rotary embeddings": InjectedFault(FaultKind.ARGUMENT_NOT_PASSED, "position_embeddings"),
    "local cache index": InjectedFault(FaultKind.LOCAL_INDEX),
    "no gradients": InjectedFault(FaultKind.FROZEN),
    "tied gradient not summed": InjectedFault(FaultKind.GRADIENT_NOT_SUMMED, "model.embed_tokens.weight"),
    "logits_to_keep dropped": InjectedFault(FaultKind.INPUT_NOT_PASSED, "logits_to_keep"),
}
SAID = {"no rotary embeddings": "DY504", "local cache index": "DY503", "no gradients": "DY502"}
SAID |= {"tied gradient not summed": "DY502"}


def test_mistakes_of_a_runtime_are_seen_in_what_they_change() -> None:
    """Outputs, decoding, gradients; the proof says so too (tests/unit/test_programs.py)."""
    loaded = load("granite", overrides={"embedding_multiplier": "12.0", "tie_word_embeddings": "true"})
    plan = carried_plan(loaded, build(loaded))
    case = Case(twin(loaded, tp=1, pp=2), plan, 1, 2)
    cases = {
        name: replace(case, staging=Staging(faults=InjectedFaults((one,)))) for name, one in RUNTIME_FAULTS.items()
    }
    for name, result in asked(cases).items():
        assert result.verdict is Verdict.REFUTED, name
        assert result.findings[0].code == SAID.get(name, "DY501")


MIXES = ("plain", "skip", "late", "between", "outside", "again", "shelf", "raw")


@pytest.fixture(scope="module")
def mixes() -> dict[str, LevelResult]:
    """Models whose layers need more than the last layer's result, on three stages."""
    cases = {}
    for mix in MIXES:
        loaded = load("tests.zoo.stream_models:StreamForCausalLM", overrides={"mix": mix})
        layers = PpEntry("pile", ("w", "first"), ("w",))
        ends = ((), ()) if mix == "raw" else (entries("zork"), entries("out"))
        plan = Plan(pp=(*ends[0], layers, *entries("fin")), head_pp=ends[1])
        cases[mix] = Case(loaded, plan, 1, 3)
        if mix == "skip":
            cases["unlisted"] = Case(loaded, replace(plan, pp=entries("zork", "pile", "fin")), 1, 3)
    return asked(cases)


@pytest.mark.parametrize("mix", ["plain", "skip", "late", "between", "shelf", "raw"])
def test_what_the_trace_says_is_live_crosses_every_cut(mixes: Mapping[str, LevelResult], mix: str) -> None:
    result = mixes[mix]
    assert result.verdict is Verdict.CONFIRMED
    assert max(result.measures.values()) <= (1e-15 if mix == "raw" else 0.0)  # raw: a gradient of two stages is summed


@pytest.mark.parametrize("mix", ["outside", "again", "unlisted"])
def test_what_cannot_cross_or_is_not_listed_is_measured_not_believed(
    mixes: Mapping[str, LevelResult], mix: str
) -> None:
    """The proof says so too (tests/unit/test_pp_check.py); the run finds it by itself."""
    assert mixes[mix].verdict is Verdict.REFUTED
    assert mixes[mix].findings[0].code == "DY501"


def test_layers_are_split_evenly_and_each_has_one_stage() -> None:
    layout = StageLayout(("embed",), "layers", 7, ("norm", "head"), dealt(7, 3))
    assert [list(chunk) for chunk in layout.chunks] == [[0, 1], [2, 3], [4, 5, 6]]
    assert layout.absent(0) == ("layers.2", "layers.3", "layers.4", "layers.5", "layers.6", "norm", "head")
    assert layout.absent(2) == ("embed", "layers.0", "layers.1", "layers.2", "layers.3")


def test_layers_are_split_where_the_bounds_say() -> None:
    assert dealt(7, 3, bounds=(1, 6)) == (range(1), range(1, 6), range(6, 7))


def test_an_even_split_moves_to_the_cuts_that_are_possible() -> None:
    assert moved(dealt(8, 3), (1, 2, 7)) == (range(2), range(2, 7), range(7, 8))
    assert moved(dealt(8, 3), (5, 6, 7)) == (range(5), range(5, 6), range(6, 8))
    assert moved(dealt(8, 3), (4,)) == dealt(8, 3)


@pytest.mark.parametrize("bounds", [(3,), (3, 3), (5, 2), (3, 7)])
def test_bounds_that_leave_a_stage_empty_are_refused(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="make no 3 pipeline stages"):
        dealt(7, 3, bounds=bounds)


def test_fewer_layers_than_stages_is_refused() -> None:
    model, plan = build(load("llama", overrides={"num_hidden_layers": "2"})), carried("llama")
    with pytest.raises(ValueError, match=r"model\.layers holds 2 layers, too few for 3 pipeline stages\."):
        layout_of(model, plan.pp, plan.head_pp, base_prefix=base_prefix(model), stages=3)


def test_forms_of_named_tuples_are_named_tuples() -> None:
    class Both(NamedTuple):
        one: torch.Tensor
        other: torch.Tensor

    layer = nn.Identity()
    with recorded(nn.Sequential(layer), ["0"]) as record:
        layer(Both(torch.ones(2), torch.ones(3)))
    (call,) = record.calls["0"]
    assert isinstance(call.output, Both)
    assert call.output.other.is_meta


def tied() -> tuple[nn.Embedding, nn.Linear, nn.Module]:
    embed, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = embed.weight
    return embed, head, nn.ModuleDict({"embed": embed, "head": head})


def test_a_dropped_module_leaves_a_tied_weight_to_the_other() -> None:
    embed, head, model = tied()
    drop(model, ["embed"])
    assert embed.weight.data_ptr() != head.weight.data_ptr()
    assert not embed.weight.any()
    assert head.weight.any()


def test_untied_weights_are_equal_and_two() -> None:
    embed, head, model = tied()
    untie(model)
    assert head.weight is not embed.weight
    assert torch.equal(head.weight, embed.weight)
