"""What the client's hooks cannot reach is refuted: calls by keyword, weights that another module reads."""

import pytest

from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.propagation.assign import assign
from shardproof.planner.tracing.programs import subject_of
from shardproof.planner.weights.conversions import misplaced
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect
from shardproof.verify.proof.prove import prove
from tests.versions import wants_type

ASKED = ("shape", "size", "length", "number")
"""Ways in which code asks for a number."""
MODEL = "tests.zoo.borrowing_model:BorrowingForCausalLM"


@pytest.mark.parametrize(
    ("plan", "code", "entry"),
    [
        ({"up": "colwise", "down_again": "rowwise"}, None, None),
        ({"called_by_keyword": "colwise_gather_output"}, "TP202", "called_by_keyword"),
        ({"never_called": "colwise", "down": "rowwise"}, "TP215", "never_called"),
        ({"table": "embedding_rowwise", "holder": "embedding_rowwise"}, None, None),
        ({"table": "embedding_rowwise"}, "TP212", "holder"),
    ],
)
def test_hooks_reach_what_is_called_with_a_tensor(plan: dict[str, str], code: str | None, entry: str | None) -> None:
    result = prove(load(MODEL), Plan(tp=tuple(TpEntry(key, style) for key, style in plan.items())), tp=2)
    if code is None:
        assert result.verdict is Verdict.PROVED
        return
    assert result.verdict is Verdict.REFUTED
    assert (result.findings[0].code, result.findings[0].place.entry) == (code, entry)


@pytest.mark.parametrize(
    ("model", "style", "held"),
    [
        ("hrm_text", "colwise", None),  # query, key, value and gate come out of one matrix
        ("nomic_bert", "colwise_gather_output", None),  # of three parts, two ranks' halves hold a whole one each
        # Pairs are told apart: right on the ranks, and saved in another order.
        pytest.param("inkling2_text", "colwise", Shard(1, 2), marks=wants_type("inkling2_text")),
        pytest.param("inkling2_text", "packed_colwise", None, marks=wants_type("inkling2_text")),
        ("mixtral", "packed_colwise", Shard(1, 2)),  # gate and up of every expert are put together: as it should be
        ("mixtral", "colwise", Shard(1, 2)),
    ],
)
def test_what_a_rank_holds_after_loading_is_tried(model: str, style: str, held: Shard | None) -> None:
    keys = {"hrm_text": "model.L_module.layers.*.self_attn.q_proj", "nomic_bert": "layers.*.self_attn.q_proj"}
    key = keys.get(model, "model.layers.*.mlp.experts.gate_up_proj")
    loaded = load(model, overrides={"num_hidden_layers": "2"})
    built = build(loaded)
    assigned = assign(subject_of(built).graph, {key: style}, base_prefix=base_prefix(built))
    found = misplaced(built, assigned, 2)
    wanted = {placement for placement, _ in assigned.parameters.values()}
    assert [(one.held, one.known) for one in found] == [] if wanted == {held} else [(held, True)]


@pytest.mark.parametrize(
    ("model", "code"),
    [("hrm_text", "TP216"), pytest.param("inkling2_text", "TP213", marks=wants_type("inkling2_text"))],
)
def test_a_plan_whose_parts_are_mixed_by_the_conversion_is_refuted(model: str, code: str) -> None:
    loaded = load(model, overrides={"num_hidden_layers": "2"})
    result = prove(loaded, carried_plan(loaded, build(loaded)), tp=2)
    assert result.verdict is Verdict.REFUTED
    assert result.findings[0].code == code
    ours = prove(loaded, suggest(loaded).plan, tp=2)
    assert ours.verdict is Verdict.PROVED


@pytest.mark.parametrize(
    ("model", "key", "style"),
    [
        ("hrm_text", "L_module.layers.*.self_attn.q_proj", "colwise"),
        pytest.param(
            "inkling2_text",
            "layers.*.mlp.experts.gate_up_proj",
            "packed_colwise",
            marks=wants_type("inkling2_text"),
        ),
        ("mixtral", "layers.*.mlp.experts.gate_up_proj", "packed_colwise"),
    ],
)
def test_few_ranks_tell_what_many_hold(model: str, key: str, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as were asked for say the same, as far as that can be tried; hundreds would need more memory than there is."""
    built = build(load(model, overrides={"num_hidden_layers": "2"}))
    assigned = assign(subject_of(built).graph, {f"model.{key}": style}, base_prefix="model")
    told = {degree: misplaced(built, assigned, degree) for degree in (3, 6, 8, 256)}
    assert told[256] == told[8]
    monkeypatch.setattr("shardproof.planner.weights.conversions.MOST_TRIED", 8)
    assert {degree: misplaced(built, assigned, degree) for degree in (3, 6, 8)} == {k: told[k] for k in (3, 6, 8)}


@pytest.mark.parametrize(("written_out", "style"), [("true", "rowwise"), ("false", "colwise_gather_output")])
def test_a_transposed_shard_is_not_viewed_as_rows(written_out: str, style: str) -> None:
    """Only where it is trained; `tests/ranks/test_inprocess.py` sees the client raise."""
    loaded = load("tests.zoo.borrowing_model:TurnedForCausalLM", overrides={"written_out": written_out})
    plan = Plan(tp=(TpEntry("up", "colwise"), TpEntry("down", "rowwise")))
    codes = [finding.code for finding in prove(loaded, plan, tp=2).findings]
    assert codes == ([] if written_out == "true" else ["TP217"])
    suggestion = suggest(loaded)
    assert {entry.pattern: entry.style for entry in suggestion.plan.tp}["down"] == style
    assert prove(loaded, suggestion.plan, tp=2).verdict is Verdict.PROVED
    assert prove_for(find_dialect("vllm"), loaded, plan, tp=2).verdict is Verdict.PROVED, "nothing is trained there"


@pytest.mark.parametrize(("asked", "code"), [("view", "TP202"), *((way, None) for way in ASKED)])
def test_code_is_told_the_size_of_the_whole_weight(asked: str, code: str | None) -> None:
    """A sharded parameter is a distributed tensor to it; `tests/ranks/test_inprocess.py` sees the client answer so."""
    loaded = load("tests.zoo.borrowing_model:AskingForCausalLM", overrides={"asked": asked})
    plan = Plan(tp=(TpEntry("up", "colwise"), TpEntry("down", "rowwise")))
    assert [finding.code for finding in prove(loaded, plan, tp=2).findings] == ([] if code is None else [code])
    assert {entry.pattern: entry.style for entry in suggest(loaded).plan.tp}["up"] == (
        "colwise" if code is None else "colwise_gather_output"
    )
    # An engine's own linear layers hold plain tensors of a rank's size.
    told = prove_for(find_dialect("vllm"), loaded, plan, tp=2)
    assert (told.verdict is Verdict.PROVED) is (asked == "view"), told.findings
