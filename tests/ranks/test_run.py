"""Level 2 on real ranks: right plans are confirmed, wrong ones refuted at the entry that is wrong."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from shardproof.launch.ranks.confirm import confirm, confirm_cases
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Fault, Severity, Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.twins.twin import twin
from shardproof.verify.report.report import LevelResult
from shardproof.verify.stages.case import Case

pytestmark = pytest.mark.timeout(240)

GROUPED = {"num_key_value_heads": "8"}
"""Four heads to a KV head: a whole key beside half the queries then runs, and is silently wrong."""
OPT = {"self_attn.q_proj": "colwise_gather_output", "fc1": "colwise", "fc2": "rowwise"}
FALCON = {"mlp.dense_h_to_4h": "colwise", "mlp.dense_4h_to_h": "rowwise"}


def carried(loaded: LoadedModel) -> Plan:
    return carried_plan(loaded, build(loaded))


def without(plan: Plan, *patterns: str) -> Plan:
    return replace(plan, tp=tuple(entry for entry in plan.tp if not entry.pattern.endswith(patterns)))


def restyled(plan: Plan, pattern: str, style: str) -> Plan:
    return replace(plan, tp=tuple(TpEntry(e.pattern, style) if e.pattern.endswith(pattern) else e for e in plan.tp))


def case(reference: str, plan: Plan | None = None, *, overrides: Mapping[str, str] | None = None) -> Case:
    loaded = load(reference, overrides=overrides)
    return Case(twin(loaded, tp=2), plan or carried(loaded), tp=2)


@pytest.fixture(scope="module")
def results() -> Mapping[str, LevelResult]:
    """Many cases in one warm group of two ranks."""
    llama, grouped, qwen3 = load("llama"), load("llama", overrides=GROUPED), load("qwen3")
    opt = Plan(
        tp=tuple(TpEntry(f"decoder.layers.*.{name}", style) for name, style in OPT.items()),
        head_tp=(TpEntry("lm_head", "colwise_gather_output"),),
    )
    cases = {
        **{
            name: case(name)
            for name in ("llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox", "mixtral", "deepseek_v3")
        },
        "opt": case("opt", opt),
        "falcon": case("falcon", Plan(tp=tuple(TpEntry(f"h.*.{name}", style) for name, style in FALCON.items()))),
        "k_proj missing": case("llama", without(carried(grouped), "k_proj"), overrides=GROUPED),
        "rowwise missing": case("llama", without(carried(llama), "down_proj")),
        "reduced twice": case(
            "llama", replace(carried(llama), tp=(*carried(llama).tp, TpEntry("layers.*.mlp", "all_reduce")))
        ),
        "q_norm missing": case("qwen3", without(carried(qwen3), "q_norm")),
        "experts packed wrongly": case("mixtral", restyled(carried(load("mixtral")), "gate_up_proj", "colwise")),
        "unknown style": case("llama", restyled(carried(llama), "down_proj", "rowise")),
    }
    return dict(zip(cases, confirm_cases(tuple(cases.values()), timeout=200), strict=True))


RIGHT = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox", "mixtral", "deepseek_v3", "opt")


@pytest.mark.parametrize("name", RIGHT)
def test_right_plans_are_confirmed(results: Mapping[str, LevelResult], name: str) -> None:
    result = results[name]
    assert result.verdict is Verdict.CONFIRMED
    assert result.measures["logits"] < 1e-10
    assert result.measures["gradient"] < 1e-10
    assert result.measures["decoded logits"] < 1e-10
    assert result.measures["weights"] == 0


@pytest.mark.parametrize(
    ("name", "code", "entry"),
    [
        ("k_proj missing", "DY501", "layers.*.self_attn.k_proj"),
        ("rowwise missing", "DY504", "layers.*.mlp.down_proj"),
        ("reduced twice", "DY501", "layers.*.mlp"),
        ("q_norm missing", "DY502", "layers.*.self_attn.q_norm"),
        ("experts packed wrongly", "DY506", "layers.*.mlp.experts.gate_up_proj"),
        ("unknown style", "DY504", None),
    ],
)
def test_wrong_plans_are_refuted_at_their_entry(
    results: Mapping[str, LevelResult], name: str, code: str, entry: str | None
) -> None:
    first = results[name].findings[0]
    assert results[name].verdict is Verdict.REFUTED
    assert (first.code, first.severity, first.place.entry) == (code, Severity.ERROR, entry)


def test_what_the_client_gets_wrong_is_not_laid_on_the_plan(results: Mapping[str, LevelResult]) -> None:
    (warning,) = results["qwen3"].findings
    assert (warning.severity, warning.fault) == (Severity.WARNING, Fault.CLIENT)
    assert "counts the first one 2 times" in warning.message


def test_what_raises_in_training_is_refuted_and_laid_on_the_model(results: Mapping[str, LevelResult]) -> None:
    """Falcon adds in place to the output of a sharded module, which autograd refuses; the numbers are right."""
    assert results["falcon"].verdict is Verdict.REFUTED
    (refusal,) = results["falcon"].findings
    assert (refusal.severity, refusal.fault) == (Severity.ERROR, Fault.MODEL)
    assert str(refusal.place.source).startswith("transformers/models/falcon/modeling_falcon.py:")


def test_heads_that_do_not_divide_do_not_in_the_run_either() -> None:
    result = confirm(load("llama", overrides={"num_attention_heads": "4"}), carried(load("llama")), tp=3, timeout=120)
    assert result.verdict is Verdict.REFUTED


def test_a_layout_of_one_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 ranks"):
        confirm("llama", Plan(), tp=1)


def test_a_plan_without_entries_is_not_run() -> None:
    result = confirm("llama", Plan(), tp=2)
    assert [finding.code for finding in result.findings] == ["PL104"]


def test_classes_that_another_process_does_not_find_are_told_of() -> None:
    loaded = load("tests.zoo.borrowing_model:BorrowingForCausalLM")
    nowhere = type("Nowhere", (type(loaded.config),), {})
    plan = Plan(tp=(TpEntry("up", "colwise"), TpEntry("down_again", "rowwise")))
    with pytest.raises(LoadError, match="the ranks cannot load this model by themselves"):
        confirm(replace(loaded, config=nowhere()), plan, tp=2)
