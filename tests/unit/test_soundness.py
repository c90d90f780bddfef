"""What a proof claims, class by class: code that makes a plan wrong is not proved, and code that only looks so is not accused."""

import re
from dataclasses import replace

import pytest

from shardproof.planner.inputs.run_modes import RunMode
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.programs import on_meta, subject_in
from shardproof.verify.proof.prove import prove
from shardproof.verify.report.report import LevelResult
from tests.versions import wants

PLAN = Plan.from_json(
    {
        "base_model_tp_plan": {
            **{f"layers.*.mix.{name}": "colwise" for name in "qkv"},
            "layers.*.mix.o": "rowwise",
            "layers.*.feed.up": "colwise",
            "layers.*.feed.down": "rowwise",
        }
    }
)


def proof(trait: str, *, strict: bool = False) -> LevelResult:
    model = load("tests.zoo.trait_models:TraitForCausalLM", overrides={"trait": trait})
    return prove(model, PLAN, tp=2, strict=strict)


@pytest.mark.parametrize(
    ("trait", "code", "module"),
    [
        ("index", "TP206", "model.layers.1.feed"),
        ("private attribute", "TP206", "model.layers.1.feed"),
        ("tuple", "TP206", "model.layers.1.feed"),
        ("enum", "TP206", "model.layers.1.feed"),
        ("closure", "TP206", "model.layers.1.feed"),
        ("hook of one layer", "TP206", "model.layers.1.feed.up"),
        ("module state", "TP206", "model.layers.1.feed"),
        ("training only", "TP206", "model.layers.0.feed"),
        ("one token only", "TP206", "model.layers.0.feed"),
        ("branch on data", "TP206", "model.layers.0.feed"),
        ("loss reads features", "TP206", None),
        ("number read off", "TP204", "model.layers.0.feed"),
        ("keyword from a local size", "TP209", "model.layers.0.mix"),
        ("numpy constant", "TP209", "model.layers.0.feed"),
        ("typed constant", "TP209", "model.layers.0.feed"),
        ("moved by a pad", "TP206", "model.layers.0.feed"),
        ("drawn for a part", "TP206", "model.layers.0.feed"),
        ("mask over a part", "TP206", "model.layers.0.feed"),
        ("hook on a gradient", "TP206", "model.layers.0.feed"),
        ("own backward", "TP206", "model.layers.0.feed"),
        ("written in place", "TP218", "model.layers.0.feed"),
        ("view of what is written", "TP206", "model.layers.0.feed"),
        ("written to as out", "TP206", "model.layers.0.feed"),
        ("a slice that begins at a local size", "TP209", "model.layers.0.feed"),
        ("a step of a local size", "TP209", "model.layers.0.feed"),
        ("set by the model", "TP206", "model.layers.2.feed"),
        ("frozen layer", "TP206", "model.layers.1.feed"),
        ("left for the loss", "TP206", "model.layers.0.feed"),
    ],
)
def test_a_wrong_plan_is_refuted(trait: str, code: str, module: str | None) -> None:
    result = proof(trait)
    assert result.verdict is Verdict.REFUTED
    assert (result.findings[0].code, result.findings[0].place.module) == (code, module)


@pytest.mark.parametrize(
    "trait",
    [
        *("plain", "forward directly", "one module in all layers", "own backward, each element", "index as a factor"),
        *("hook on a gradient, each element", "without gradient", "gradient switched off", "data attribute"),
        *("logged and not read", "not a number", "straight through", "tiled to a local size"),
        *("view of what is written by element", "left for the loss, whole"),
        *("statistic of the input", "statistic that nothing reads"),
    ],
)
def test_a_right_plan_is_not_accused(trait: str) -> None:
    result = proof(trait)
    assert result.findings == ()
    assert result.scope is not None
    assert result.scope.modes == ("evaluation", "training", "decoding")


def test_what_training_leaves_for_evaluation_has_to_be_whole() -> None:
    result = proof("statistic of a part")
    assert result.verdict is Verdict.NOT_PROVED
    assert result.findings[0].message.startswith("in training, the forward leaves in model.layers.0.feed.seen")


@pytest.mark.parametrize(
    ("trait", "when"),
    [
        ("mean of the last forward", "in decoding, "),
        ("mean of the last training", "in evaluation after a forward in training, "),
        ("mean of the last input", ""),
        ("mean that is only kept", ""),
    ],
)
def test_what_a_forward_leaves_in_an_attribute_is_there_in_the_next(trait: str, when: str) -> None:
    result = proof(trait)
    assert result.verdict is (Verdict.REFUTED if when else Verdict.PROVED), result.findings
    assert not when or result.findings[0].message.startswith(f"{when}mean needs all of a dim that is sharded")


def test_a_gradient_taken_in_the_forward_is_not_recorded() -> None:
    result = proof("differentiated in the forward")
    assert result.verdict is Verdict.NOT_PROVED
    assert "torch.func" in result.findings[0].message


@pytest.mark.parametrize(("trait", "verdict"), [("saved in half", "not proved"), ("saved as it is", "proved")])
def test_what_hooks_save_for_the_backward(trait: str, verdict: str) -> None:
    result = proof(trait)
    assert result.verdict == verdict, result.findings
    assert verdict == "proved" or "saved_tensors_hooks" in result.findings[0].message


@pytest.mark.parametrize(("trait", "alone"), [("plain", 2), ("own entry of the cache", 3)])
def test_a_layer_that_reads_its_own_entry_of_the_cache_has_filled_it(trait: str, alone: int) -> None:
    """Where a layer runs in decoding, it has run in the prefill: no other layer stood for it there."""
    model = on_meta(load("tests.zoo.trait_models:TraitForCausalLM", overrides={"trait": trait}))
    decoding = subject_in(model, RunMode.DECODING)
    assert decoding is not None
    layers = [module for module in decoding.graph.modules if re.fullmatch(r"model\.layers\.\d", module.path)]
    assert [layer.repeats is None for layer in layers].count(True) == alone
    assert proof(trait).verdict is Verdict.PROVED


def test_the_scope_says_what_was_looked_at() -> None:
    scope = proof("plain").scope
    assert scope is not None
    assert scope.sentence().startswith("evaluation, training, decoding; 2 layers traced, 1 run the same program")
    assert scope.assumptions == ()


def test_dropout_of_a_part_is_an_assumption() -> None:
    result = proof("dropped")
    assert (result.findings, result.scope and len(result.scope.assumptions)) == ((), 1)


def test_an_assumption_is_undecided_where_nothing_may_be_assumed() -> None:
    assumed = proof("number read off, not of a part").scope
    assert assumed is not None
    assert "numbers are read off data" in assumed.assumptions[0]
    strict = proof("number read off, not of a part", strict=True)
    assert [finding.code for finding in strict.findings] == ["TP210"] * len(assumed.assumptions)
    assert strict.verdict is Verdict.NOT_PROVED


def test_layers_whose_index_is_used_are_all_run() -> None:
    scope = proof("index as a factor").scope
    assert scope is not None
    assert scope.same == ()


EXPERTS = Plan.from_json(
    {
        "base_model_ep_plan": {
            "layers.*.feed.experts": "ep_dispatch_experts",
            "layers.*.feed.experts.up": "grouped_gemm",
            "layers.*.feed.experts.down": "grouped_gemm",
        },
        "tp_plan": {"head": "colwise_gather_output"},
    }
)


@wants("ep_dispatch_experts")
def test_experts_have_a_number_each() -> None:
    model = load("tests.zoo.expert_models:ExpertsForCausalLM", overrides={"trait": "a factor for each expert"})
    assert prove(model, EXPERTS, tp=2, ep=2).findings[0].message.endswith("factor stays whole.")
    plan = replace(EXPERTS, ep=(*EXPERTS.ep, TpEntry("layers.*.feed.experts.factor", "grouped_gemm")))
    assert prove(model, plan, tp=2, ep=2).findings == ()


@wants("ep_dispatch_experts")
@pytest.mark.parametrize(
    ("trait", "problem"),
    [
        ("plain", None),
        ("scaled by number", "in inference the ranks' output"),
        ("mean over tokens", "in training the ranks' output"),
        ("weights without gradient", "gradient of the routing weights"),
        ("last layer", "model.layers.2.feed.experts"),
        ("capacity", "the ranks' output"),
        ("all at once", None),
        ("sorted, by counts", None),
        ("unique", None),
    ],
)
def test_experts_are_run_as_ranks_run_them(trait: str, problem: str | None) -> None:
    model = load("tests.zoo.expert_models:ExpertsForCausalLM", overrides={"trait": trait})
    found = prove(model, EXPERTS, tp=2, ep=2).findings
    if problem is None:
        assert found == ()
    else:
        assert found[0].code == "TP214"
        assert problem in found[0].message or problem == found[0].place.module


STAGES = Plan.from_json(
    {
        "base_model_pp_plan": {"words": [["input_ids"], ["x"]], "layers": [["x"], ["x"]]},
        "pp_plan": {"head": [["last_hidden_state"], ["logits"]]},
    }
)


@pytest.mark.parametrize(
    ("trait", "wrong"),
    [
        ("plain", ""),
        ("its own index", ""),
        ("its own keys", ""),
        ("a tensor on a shelf", '"model.layers" cannot be cut'),
        ("a count on a shelf", "stage 1 "),
        ("a tensor on a shelf in training", "in training, stage 1 raises"),
        ("a tensor on a shelf for one token", "in decoding, stage 1 raises"),
        ("keys of the first layer", "in decoding, stage 1 runs linear of head"),
        ("loss reads features", "in training, stage 1 "),
    ],
)
def test_stages_are_programs_with_what_layers_share(trait: str, wrong: str) -> None:
    overrides = {"trait": trait, "num_hidden_layers": 4}
    model = load("tests.zoo.expert_models:LeavingForCausalLM", overrides=overrides)
    result = prove(model, STAGES, tp=1, pp=2)
    assert result.verdict is (Verdict.REFUTED if wrong else Verdict.PROVED)
    assert all(finding.message.startswith(wrong) for finding in result.findings)
    if not wrong:
        assert result.scope is not None and result.scope.stages == ("evaluation", "training", "decoding")
