"""Right plans are proved; wrong ones are refuted at the right entry, with an edit that was tried."""

from dataclasses import replace
from functools import reduce

import pytest

from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.verify.proof.prove import prove
from tests.versions import LOOKS_UP_PRODUCTS, SPLITS_TABLES, wants
from tests.zoo.shallow import shallow

BY_HAND = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox", "mixtral", "deepseek_v3")


def plan_of(name: str) -> Plan:
    loaded = shallow(name)
    return carried_plan(loaded, build(loaded))


def mutated(plan: Plan, pattern: str, style: str | None) -> Plan:
    assert any(entry.pattern == pattern for entry in plan.tp) or style is not None
    kept = tuple(entry for entry in plan.tp if entry.pattern != pattern)
    return replace(plan, tp=kept if style is None else (*kept, TpEntry(pattern, style)))


@pytest.mark.parametrize("name", BY_HAND)
def test_plans_by_hand_are_proved(name: str) -> None:
    assert prove(name, plan_of(name), tp=2).verdict is Verdict.PROVED


def test_a_lookup_style_elsewhere_is_left_open() -> None:
    """The client confirms it: its distributed tensors find their own way there."""
    result = prove(shallow("llama"), mutated(plan_of("llama"), "norm", "embedding_rowwise"), tp=2)
    assert (result.verdict, result.findings[0].code) == (Verdict.NOT_PROVED, "TP210")


TABLES = [
    ("qwen2", {"layers.*.self_attn.q_proj": "embedding_rowwise"}, Verdict.PROVED),
    ("llama", {"layers.*.mlp.gate_proj": "embedding_colwise"}, Verdict.PROVED),
    ("gpt2", {"h.*.attn.c_attn": "embedding_colwise", "h.*.attn.c_attn.bias": "colwise"}, Verdict.PROVED),
    ("gpt2", {"h.*.mlp.c_proj": "embedding_rowwise", "h.*.mlp.c_proj.bias": "rowwise"}, Verdict.PROVED),
    ("gpt2", {"h.*.mlp.c_proj": "embedding_rowwise"}, Verdict.NOT_PROVED),
    ("qwen2", {"layers.*.self_attn.q_proj": "embedding_colwise"}, Verdict.REFUTED),
]
"""All but the last, whose bias has no second dim, are confirmed by ranks."""


@pytest.mark.parametrize(("name", "styles", "verdict"), TABLES)
def test_lookup_styles_on_products(name: str, styles: dict[str, str], verdict: Verdict) -> None:
    plan = Plan(tp=tuple(TpEntry(pattern, style) for pattern, style in styles.items()))
    if not LOOKS_UP_PRODUCTS:
        verdict = Verdict.NOT_PROVED if "embedding_rowwise" in styles.values() else Verdict.REFUTED
    assert prove(shallow(name), plan, tp=2).verdict is verdict


MUTANTS = [
    ("llama", "layers.*.self_attn.q_proj", None, "TP203"),
    ("llama", "layers.*.self_attn.k_proj", None, "TP203"),
    ("llama", "layers.*.self_attn.o_proj", None, "TP203"),
    ("llama", "layers.*.self_attn.o_proj", "all_reduce", "TP203"),
    ("llama", "layers.*.mlp.down_proj", "colwise", "TP206"),
    ("llama", "layers.*.mlp.gate_proj", "rowwise", "TP203"),
    ("llama", "layers.*.mlp.up_proj", "packed_colwise", "TP203"),
    ("llama", "layers.*.mlp", "all_reduce", "TP205"),
    ("llama", "layers.*.mlp.gate_proj", "colwise_gather_output", "TP203"),
    ("llama", "layers.*.self_attn", "all_reduce", "TP202"),
    ("qwen3", "layers.*.self_attn.q_norm", None, "TP207"),
    ("qwen3", "layers.*.input_layernorm", "replicated_with_grad_allreduce", "TP208"),
    ("qwen3", "layers.*.input_layernorm", "sequence_parallel", "TP208"),
    ("qwen3", "layers.*.self_attn.q_norm", "sequence_parallel", None),
    ("gemma2", "layers.*.self_attn.v_proj", None, "TP203"),
    ("phi3", "layers.*.self_attn.qkv_proj", "colwise", "TP213"),
    ("phi3", "layers.*.mlp.gate_up_proj", "colwise", "TP213"),
    ("gpt_neox", "layers.*.attention.query_key_value", "packed_colwise", "TP203"),
    pytest.param("granite_swa", "layers.*.self_attn", None, "TP215", marks=wants("local_params")),
    ("mixtral", "layers.*.mlp.experts", None, "TP215"),
    ("mixtral", "layers.*.mlp.experts.gate_up_proj", "colwise", "TP213"),
    pytest.param("mixtral", "layers.*.mlp.gate", "local_params", None, marks=wants("local_params")),
    ("deepseek_v3", "layers.*.mlp.shared_experts.down_proj", None, "TP203"),
]


@pytest.mark.parametrize(("name", "pattern", "style", "code"), MUTANTS)
def test_mutants(name: str, pattern: str, style: str | None, code: str | None) -> None:
    result = prove(shallow(name), mutated(plan_of(name), pattern, style), tp=2)
    if code is None:
        assert result.verdict is Verdict.PROVED
        return
    assert result.verdict is Verdict.REFUTED
    first = next(finding for finding in result.findings if finding.severity is Severity.ERROR)
    assert first.code == code
    assert first.place.entry == pattern
    assert first.why
    assert first.found
    assert first.needed


def test_a_fix_was_tried() -> None:
    finding = prove(shallow("llama"), mutated(plan_of("llama"), "layers.*.self_attn.o_proj", None), tp=2).findings[0]
    assert finding.fix is not None
    assert str(finding.fix.edits[0]) == 'add "layers.*.self_attn.o_proj": "rowwise"'
    assert finding.fix.safety == "the edited plan was proved"


@pytest.mark.parametrize(
    "missing",
    [
        ("layers.*.self_attn.q_norm", "layers.*.self_attn.k_norm"),
        ("layers.*.self_attn.k_proj", "layers.*.self_attn.v_proj"),
        ("layers.*.self_attn.o_proj", "layers.*.mlp.down_proj"),
    ],
)
def test_a_fix_may_be_several_edits(missing: tuple[str, ...]) -> None:
    right = plan_of("qwen3")
    plan = reduce(lambda plan, pattern: mutated(plan, pattern, None), missing, right)
    fix = prove(shallow("qwen3"), plan, tp=2).findings[0].fix
    assert fix is not None
    assert fix.safety == "the edited plan was proved"
    assert {(edit.pattern, edit.new) for edit in fix.edits} == {(p, right.styles("")[p]) for p in missing}


def test_a_fix_may_take_entries_away() -> None:
    """Without q, k and v, the rest of the attention's entries has to go."""
    plan = reduce(lambda plan, name: mutated(plan, f"layers.*.self_attn.{name}_proj", None), "qkv", plan_of("qwen3"))
    fix = prove(shallow("qwen3"), plan, tp=2).findings[0].fix
    assert fix is not None
    assert [str(edit) for edit in fix.edits] == [
        'remove "layers.*.self_attn.o_proj": "rowwise"',
        'remove "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce"',
        'remove "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce"',
    ]


def test_tied_weights_placed_apart() -> None:
    result = prove(shallow("gemma2"), replace(plan_of("gemma2"), head_tp=()), tp=2)
    assert [finding.code for finding in result.findings] == ["TP212"]


def test_vocabulary_split_head_without_a_gather() -> None:
    plan = replace(plan_of("llama"), head_tp=(TpEntry("lm_head", "colwise"),))
    finding = prove(shallow("llama"), plan, tp=2).findings[0]
    assert (finding.code, finding.place.entry) == ("TP206", "lm_head")


def test_a_degree_that_splits_a_head() -> None:
    result = prove(shallow("llama"), plan_of("llama"), tp=3)
    assert result.verdict is Verdict.REFUTED
    assert result.findings[0].code == "TP201"


@pytest.mark.parametrize(("degree", "verdict"), [(4, Verdict.PROVED), (8, Verdict.PROVED), (16, Verdict.REFUTED)])
def test_key_heads_bound_the_degree(degree: int, verdict: Verdict) -> None:
    assert prove(shallow("mixtral"), plan_of("mixtral"), tp=degree).verdict is verdict


def test_one_rank_needs_no_proof() -> None:
    assert prove(shallow("llama"), plan_of("llama"), tp=1).verdict is Verdict.PROVED


def test_a_degree_below_one_is_misuse() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        prove(shallow("llama"), plan_of("llama"), tp=0)


def test_a_table_is_split_without_an_entry_only_where_its_model_has_one() -> None:
    tied = load("llama", overrides={"tie_word_embeddings": "true"})
    head = (TpEntry("lm_head", "colwise_gather_output"),)
    alone = prove(tied, Plan(head_tp=head), tp=2)
    assert [finding.code for finding in alone.findings] == ["TP212"]
    beside = (TpEntry("layers.*.mlp.up_proj", "colwise_gather_output"),)
    split = prove(tied, Plan(head_tp=head, tp=beside), tp=2)
    assert [finding.code for finding in split.findings] == ([] if SPLITS_TABLES else ["TP212"])
