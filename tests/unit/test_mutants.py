"""The mutants benchmark: what the operators make, which are chosen, how an outcome is classed."""

import pytest

from benchmarks.mutants import Options, chosen
from benchmarks.mutants_table import OUTCOMES, Judged, page
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from tests.mutants.operators import Mutant, expert_mutants, mutants

STYLES = {
    "model.embed_tokens": "embedding_rowwise",
    "lm_head": "colwise_gather_output",
    **{f"model.layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"},
    "model.layers.*.self_attn.o_proj": "rowwise",
    "model.layers.*.mlp.gate_proj": "colwise",
    "model.layers.*.mlp.up_proj": "colwise",
    "model.layers.*.mlp.down_proj": "rowwise",
}


@pytest.fixture(scope="module")
def found() -> list[Mutant]:
    model = build(load("qwen2"))
    assert base_prefix(model) == "model"
    return list(mutants(trace(model), STYLES))


def test_every_mutant_is_another_plan_and_says_where(found: list[Mutant]) -> None:
    plans = [tuple(sorted(mutant.styles.items())) for mutant in found]
    assert len(set(plans)) == len(plans)
    assert len({mutant.name for mutant in found}) == len(found)
    for mutant in found:
        changed = {key for key in {*STYLES, *mutant.styles} if STYLES.get(key) != mutant.styles.get(key)}
        assert changed == set(mutant.entries), mutant.name


@pytest.mark.parametrize("fault", ["T1", "T2", "T3", "T4", "T5", "T6", "T7", "T9", "T12", "T14", "L1", "L2", "L5"])
def test_a_dense_model_carries_the_fault(found: list[Mutant], fault: str) -> None:
    assert any(mutant.operator.split()[0] == fault for mutant in found)


def test_a_larger_limit_keeps_what_a_smaller_one_chose(found: list[Mutant]) -> None:
    few = chosen(found, Options(limit=6), salt="qwen2")
    more = chosen(found, Options(limit=20), salt="qwen2")
    assert more[:6] == few and len(more) == 20
    assert len({mutant.operator for mutant in few}) == 6


def test_expert_plans_have_mutants_of_their_own() -> None:
    prefix = "model.layers.*.mlp.experts"
    experts = {
        f"{prefix}.gate_up_proj": "grouped_gemm",
        f"{prefix}.down_proj": "grouped_gemm",
        prefix: "ep_dispatch_experts",
    }
    made = list(expert_mutants(trace(build(load("mixtral"))), STYLES, experts))
    assert {mutant.operator.split()[0] for mutant in made} == {"M1", "M3", "M5"}
    assert all(mutant.experts != experts and mutant.styles == STYLES for mutant in made)
    assert any("model.layers.*.mlp.gate" in mutant.entries for mutant in made)


def _judged(proof: str, run: str, *codes: str) -> Judged:
    return Judged("llama", "suggested", "T1", f"T1 {proof} {run}", proof, run, codes, (), "", "", True, (0.1, 0.2))


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        (_judged("proved", "refuted"), "false proof"),
        (_judged("refuted", "confirmed", "TP203"), "false accusation"),
        (_judged("refuted", "confirmed", "PL102"), "refuted"),
        (_judged("refuted", "refuted", "TP203"), "refuted"),
        (_judged("proved", "confirmed"), "equivalent"),
        (_judged("not proved", "refuted", "TP210"), "caught by the run only"),
        (_judged("not proved", "confirmed", "TP210"), "equivalent, not proved"),
        (_judged("refuted", "not proved", "TP203"), "run undecided"),
    ],
)
def test_outcomes(row: Judged, outcome: str) -> None:
    assert row.outcome == outcome
    cells = next(line for line in page([row]).splitlines() if line.startswith("| T1 |")).split(" | ")
    assert [cells[OUTCOMES.index(each) + 1] for each in OUTCOMES] == [str(int(each == outcome)) for each in OUTCOMES]
