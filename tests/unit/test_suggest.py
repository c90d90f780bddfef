"""Plans inferred from the computation: on architectures of Transformers, and on models whose names say nothing."""

from dataclasses import replace

import pytest

from shardproof.launch.proved_suggestion import right_part
from shardproof.launch.proved_suggestion import suggest as proved
from shardproof.planner.inference.suggest import Suggestion, suggest
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.transformers_facts.version import style_exists
from shardproof.verify.proof.prove import prove
from tests.versions import serves, since, wants
from tests.zoo.shallow import shallow

TYPES = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox", "opt", "falcon", "mixtral", "deepseek_v3")


@pytest.fixture(scope="module")
def suggestions() -> dict[str, Suggestion]:
    return {name: suggest(shallow(name)) for name in TYPES}


@pytest.fixture(scope="module")
def rwkv() -> Suggestion:
    return suggest(shallow("rwkv", layers=2))


@pytest.mark.parametrize("name", TYPES)
def test_is_proved(name: str, suggestions: dict[str, Suggestion]) -> None:
    result = prove(shallow(name), suggestions[name].plan, tp=2)
    assert result.verdict is Verdict.PROVED, result.findings


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gpt_neox", "mixtral"])
def test_says_what_people_wrote_by_hand(name: str, suggestions: dict[str, Suggestion]) -> None:
    loaded = load(name)
    by_hand = carried_plan(loaded, build(loaded))
    ours = {entry.pattern: entry.style for entry in suggestions[name].plan.tp}
    assert {entry.pattern: entry.style for entry in by_hand.tp}.items() <= ours.items()
    assert suggestions[name].plan.head_tp[0].style == "colwise_gather_output"
    assert suggestions[name].plan.ep == () or {e.pattern: e.style for e in suggestions[name].plan.ep} == {
        e.pattern: e.style for e in by_hand.ep
    }


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("opt", "falcon")])
def test_pipeline_is_what_people_wrote_by_hand(name: str, suggestions: dict[str, Suggestion]) -> None:
    loaded = load(name)
    by_hand = carried_plan(loaded, build(loaded))
    assert suggestions[name].plan.pp == by_hand.pp
    assert suggestions[name].plan.head_pp == by_hand.head_pp


def test_packed_halves_beat_the_plan_by_hand(suggestions: dict[str, Suggestion]) -> None:
    styles = {entry.pattern: entry.style for entry in suggestions["phi3"].plan.tp}
    assert styles["layers.*.mlp.gate_up_proj"] == "packed_colwise"
    assert styles["layers.*.mlp.down_proj"] == "rowwise"
    assert styles["layers.*.self_attn.qkv_proj"] == "colwise_gather_output"


def test_latent_attention_is_split_by_heads(suggestions: dict[str, Suggestion]) -> None:
    styles = {entry.pattern: entry.style for entry in suggestions["deepseek_v3"].plan.tp}
    assert styles["layers.*.self_attn.q_b_proj"] == styles["layers.*.self_attn.kv_b_proj"] == "colwise"
    assert styles["layers.*.self_attn.kv_a_proj_with_mqa"] == "mla_kv_a_proj"


def test_a_head_count_in_the_code_is_the_reason(suggestions: dict[str, Suggestion]) -> None:
    reasons = {entry.pattern: entry.because for entry in suggestions["opt"].plan.tp}
    assert "modeling_opt.py:152" in reasons["decoder.layers.*.self_attn.q_proj"]


@pytest.mark.parametrize(("name", "most"), [("llama", 32), ("gemma2", 4), ("mixtral", 8), ("deepseek_v3", 128)])
def test_degrees(name: str, most: int, suggestions: dict[str, Suggestion]) -> None:
    found = suggestions[name].degrees
    assert found == tuple(2**power for power in range(most.bit_length()))


def test_every_entry_has_a_reason_with_its_line(suggestions: dict[str, Suggestion]) -> None:
    for suggestion in suggestions.values():
        for entry in (*suggestion.plan.tp, *suggestion.plan.head_tp):
            assert entry.because
            assert "site-packages" not in entry.because


ODD = {
    "OddPlain": {"aa": "colwise", "bb": "colwise", "cc": "colwise", "dd": "rowwise", "up_": "colwise", "tt": "rowwise"},
    "OddParallel": {"aa": "colwise", "dd": "rowwise", "gu": "packed_colwise", "tt": "rowwise"},
    "OddHeadNormed": {"aa": "colwise", "nn_": "replicated_with_grad_allreduce", "gu": "packed_colwise"},
    "OddInterleaved": {"zz": "colwise", "yy": "rowwise", "gu": "colwise", "tt": "rowwise"},
    "OddStrided": {"zz": "colwise", "gu": "colwise", "tt": "rowwise"},
    "OddGrouped": {"w1": "colwise", "w2": "rowwise", "two": "replicated_with_grad_allreduce"},
    "OddSunk": {"aa": "colwise", "dd": "rowwise", "ss": "colwise", "one": "local_params"},
    "OddListed": {"gu": "packed_colwise", "tt": "rowwise"},
    "OddBaked": {"aa": "colwise_gather_output", "up_": "colwise", "tt": "rowwise"},
    "OddSloped": {"aa": "colwise_gather_output", "up_": "colwise"},
    "OddWideNormed": {"aa": "colwise_gather_output", "gu": "colwise"},
    "OddBlocked": {"zz": "colwise_gather_output", "up_": "colwise"},
    "OddTurned": {"pp": "embedding_colwise", "b": "colwise", "qq": "embedding_colwise", "aa": "colwise"},
    "OddPaired": {"aa": "colwise_gather_output", "up_": "colwise"},
}


MIXED = {
    "OddCubes": {"a": "colwise", "b": "colwise", "c": "colwise", "e": "embedding_rowwise", "one": "moe_tp_experts"},
    "OddOwnPair": {"l1": "local_params", "l2": "local_params", "two": "moe_tp_experts"},
    "OddOwnUp": {"m": "colwise", "l1": "packed_colwise", "l2": "rowwise"},
    "OddLeaning": {"aa": "colwise_gather_output", "dd": "colwise_gather_output", "tt": "rowwise"},
    "OddDecaying": {"taps": "colwise", "rate": "colwise", "p1": "colwise", "p4": "rowwise", "one": "local_params"},
    "OddRecalling": {"g1": "colwise", "g4": "colwise", "g5": "rowwise"},
    "OddPicked": {"w1": "packed_colwise", "w2": "rowwise", "many": "moe_tp_experts", "gu": "packed_colwise"},
    "OddPickedBiased": {"gu": "packed_colwise", "tt": "rowwise", "aa": "colwise"},
    "OddStreams": {"gu": "packed_colwise", "tt": "rowwise", "aa": "colwise", "dd": "rowwise"},
}


@pytest.mark.parametrize("name", MIXED)
def test_mixers_experts_and_streams(name: str) -> None:
    reference = f"tests.zoo.odd_mixers:{name}"
    suggestion = suggest(reference)
    styles = {entry.pattern.rpartition(".")[2]: entry.style for entry in suggestion.plan.tp}
    assert MIXED[name].items() <= styles.items() or not serves(MIXED[name])
    assert prove(reference, suggestion.plan, tp=2).verdict is Verdict.PROVED


@wants("ep_dispatch_experts")
def test_experts_with_a_bias_are_left_to_the_expert_plan() -> None:
    plan = suggest("tests.zoo.odd_mixers:OddPickedBiased").plan
    assert {entry.pattern.rpartition(".")[2]: entry.style for entry in plan.ep} == {
        "w1": "grouped_gemm",
        "w2": "grouped_gemm",
        "c2": "grouped_gemm",
        "many": "ep_dispatch_experts",
    }
    assert "the expert plan shards it" in plan.unplanned["body.steps.*.two.many"]


def test_a_parameter_that_another_module_reads_stays_whole() -> None:
    plan = suggest("tests.zoo.odd_mixers:OddBorrowed").plan
    styles = {entry.pattern.rpartition(".")[2]: entry.style for entry in plan.tp}
    assert "taps" not in styles
    assert "is read by" in plan.unplanned["body.steps.*.two.held"]


@pytest.mark.parametrize("name", ODD)
def test_models_with_names_that_say_nothing(name: str) -> None:
    reference = f"tests.zoo.odd_models:{name}"
    suggestion = suggest(reference)
    styles = {entry.pattern.rpartition(".")[2]: entry.style for entry in suggestion.plan.tp}
    assert ODD[name].items() <= styles.items() or not serves(ODD[name])
    assert prove(reference, suggestion.plan, tp=2).verdict is Verdict.PROVED
    assert [entry.module for entry in suggestion.plan.pp] == ["tok", "steps", "fin"]


def test_a_plan_lands_where_it_is_read() -> None:
    suggestion = suggest("tests.zoo.odd_models:OddBare")
    assert suggestion.plan.tp == ()
    assert "body.steps.*.one.aa" in {entry.pattern for entry in suggestion.plan.head_tp}
    assert prove("tests.zoo.odd_models:OddBare", suggestion.plan, tp=2).verdict is Verdict.PROVED


def test_a_plan_that_nobody_reads_is_refuted() -> None:
    plan = suggest("tests.zoo.odd_models:OddPlain").plan
    assert [finding.code for finding in prove("tests.zoo.odd_models:OddBare", plan, tp=2).findings] == ["PL106"]


def test_a_forward_that_changes_its_model_is_traced_as_it_is_afterwards(rwkv: Suggestion) -> None:
    assert any("first forward changes the model itself" in note for note in rwkv.notes)
    assert rwkv.sharded_fraction > (0.99 if style_exists("local_params") else 0.75)


@wants("local_params")
def test_a_parameter_that_initialising_mixes_with_plain_tensors_stays_whole(rwkv: Suggestion) -> None:
    assert "_init_weights combines" in rwkv.plan.unplanned["rwkv.blocks.*.attention"]
    wrong = Plan(
        tp=(
            TpEntry("blocks.*.attention.time_first", "colwise"),
            TpEntry("blocks.*.attention", "local_params"),
        )
    )
    found = prove(shallow("rwkv", layers=2), wrong, tp=2).findings[0]
    assert (found.code, found.place.entry) == ("TP215", "blocks.*.attention.time_first")


@since((5, 21), "gathers tables alone")
def test_a_key_that_numbered_modules_share_gathers_for_each() -> None:
    loaded = load("ctrl", overrides={"n_layer": "2"})
    suggestion = suggest(loaded)
    styles = {entry.pattern: entry.style for entry in suggestion.plan.tp}
    assert styles["h.*.ffn.*"] == "embedding_rowwise"
    assert prove(loaded, suggestion.plan, tp=2).verdict is Verdict.PROVED


def test_a_model_that_never_sets_itself_up_is_told() -> None:
    suggestion = suggest("tests.zoo.odd_models:OddUnset")
    (finding,) = prove("tests.zoo.odd_models:OddUnset", suggestion.plan, tp=2).findings
    assert (finding.code, "OddUnset.__init__ without post_init" in finding.found) == ("PL106", True)


def test_a_table_of_two_rows_does_not_forbid_degrees() -> None:
    assert 12 in suggest(load("big_bird", overrides={"num_hidden_layers": "2", "vocab_size": "1200"})).degrees


def test_a_small_projection_beside_gathered_ones_is_gathered_too() -> None:
    styles = {entry.pattern: entry.style for entry in suggest(shallow("qwen3_next")).plan.tp}
    assert styles["layers.*.linear_attn.in_proj_ba"] == styles["layers.*.linear_attn.in_proj_qkvz"]


@pytest.mark.parametrize(("heads", "tp"), [(4, 8), (3, 2)])
def test_more_ranks_than_key_heads(heads: int, tp: int) -> None:
    """Attention is gathered where its heads do not divide; the rest is split."""
    overrides = {"num_key_value_heads": heads, "num_attention_heads": 24, "num_hidden_layers": 2}
    loaded = load("qwen3", overrides=overrides)
    plan = suggest(loaded, tp=tp).plan
    styles = plan.styles("")
    assert styles["layers.*.mlp.down_proj"] == "rowwise"
    assert styles["layers.*.self_attn.k_proj"] == "colwise_gather_output"
    assert prove(loaded, plan, tp=tp).verdict is Verdict.PROVED


def test_a_pipeline_plan_that_could_not_be_proved_is_told() -> None:
    found = proved(load("llama", overrides={"num_hidden_layers": 1}))
    assert found.plan.pp
    assert any("the pipeline plan was not proved" in note and "1 layers" in note for note in found.notes)


def test_what_its_own_proof_refutes_is_not_suggested() -> None:
    model = load("llama", overrides={"num_hidden_layers": 2})
    found = suggest(model)
    wrong = replace(
        found.plan, tp=tuple(e for e in found.plan.tp if not e.pattern.endswith(("k_proj", "up_proj"))), head_tp=()
    )
    left, proof = right_part(model, replace(found, plan=wrong), 2)
    assert left.plan.styles("") == {"embed_tokens": "embedding_rowwise"}
    assert proof is not None
    assert proof.verdict is Verdict.PROVED
    assert 0 < left.sharded_fraction < found.sharded_fraction
    assert [note.partition(":")[0].count("layers.*.") for note in left.notes] == [3, 2]
    assert {part.pattern.rpartition(".")[2] for part in left.left} >= {"q_proj", "down_proj"}
    alone = Plan(tp=(TpEntry("layers.*.mlp.down_proj", "rowwise"),))
    nothing, unproved = right_part(model, replace(found, plan=alone), 2)
    assert (nothing.plan.tp, unproved, nothing.sharded_fraction) == ((), None, 0.0)
