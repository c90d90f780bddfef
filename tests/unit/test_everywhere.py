"""One plan for all serving clients, or why there is none and what each has to give up."""

from functools import cache

import pytest

from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.verify.clients.common_plan import everywhere, serving
from shardproof.verify.clients.compile import compile_for, in_order
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect
from shardproof.verify.clients.transformers.dialect import TRANSFORMERS
from shardproof.verify.report.client_readings import ClientVerdict, Everywhere
from shardproof.verify.report.formats.client_readings import everywhere_json, everywhere_lines, right_in


@cache
def planned(name: str) -> tuple[LoadedModel, Plan]:
    loaded = load(name, overrides={"num_hidden_layers": "2"})
    return loaded, suggest(loaded).plan


@cache
def found(name: str) -> Everywhere:
    return everywhere(*planned(name))[1]


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma2"])
def test_one_plan_for_all(name: str) -> None:
    assert found(name).one
    assert [reached.client for reached in found(name).clients] == [dialect.name for dialect in serving()]
    assert everywhere_lines(found(name)) == [right_in(found(name))]


@pytest.mark.parametrize("name", ["glm", "gpt_oss"])
def test_each_client_says_what_it_loses(name: str) -> None:
    for reached in found(name).clients:
        own = compile_for(find_dialect(reached.option), *planned(name))
        assert reached.nearest is own.proof.verdict is Verdict.PROVED
        assert (reached.verdict is Verdict.REFUTED) == bool(reached.reasons)
        if reached.verdict is Verdict.REFUTED:
            assert dict(reached.losses) == dict(own.losses) != {}


@pytest.mark.parametrize("name", ["glm", "gpt_oss"])
def test_a_plan_for_all_is_right_in_each_and_shards_less(name: str) -> None:
    loaded, plan = planned(name)
    common = compile_for(serving(), loaded, plan)
    assert common.losses
    for dialect in serving():
        assert prove_for(dialect, loaded, common.plan).verdict is Verdict.PROVED
    shared = found(name).shared
    assert shared is not None
    assert 0 < shared < found(name).clients[0].share


def test_where_the_code_is_in_the_way_no_plan_is_right() -> None:
    assert found("phi3").shared is None
    lines = everywhere_lines(found("phi3"))
    assert lines[0] == f"Right in {TRANSFORMERS.name} and tgi 3.3; not in vllm 0.33 and sglang 0.5.23."
    assert "`plan check MODEL --backend vllm`" in lines[1]
    assert any('vllm 0.33 has no "packed_colwise"' in line for line in lines)
    assert lines[-1] == "  no plan is right in all of them."


def test_other_words_for_the_same_layout_are_no_loss() -> None:
    reached = next(one for one in found("mamba").clients if one.option == "sglang")
    assert (reached.verdict, reached.nearest, dict(reached.losses)) == (Verdict.REFUTED, Verdict.PROVED, {})
    assert 'has no style "colwise_gather_output"' in reached.reasons[0]


def test_a_key_that_begins_another_comes_after_it() -> None:
    plan = Plan(tp=(TpEntry("layers.*.c", "colwise"), TpEntry("layers.*.c_proj", "rowwise")))
    assert [entry.pattern for entry in in_order(plan).tp] == ["layers.*.c_proj", "layers.*.c"]
    apart = Plan(tp=(TpEntry("layers.*.a", "colwise"), TpEntry("layers.*.b_proj", "rowwise")))
    assert in_order(apart) == apart


def test_as_json() -> None:
    one = Everywhere(
        (ClientVerdict("vllm 0.33", Verdict.REFUTED, ("TP203: x",), Verdict.PROVED, {"a": "b"}, 0.25),), None
    )
    assert everywhere_json(one) == {
        "clients": {
            "vllm 0.33": {
                "verdict": "refuted",
                "reasons": ["TP203: x"],
                "nearest": "proved",
                "losses": {"a": "b"},
                "sharded_fraction": 0.25,
            }
        },
        "one_plan": None,
    }
