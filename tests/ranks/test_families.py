"""Suggested plans of models whose names say nothing, on ranks: their tensor plans, and their expert plans."""

import pytest

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.loading.load import load
from shardproof.planner.twins.twin import twin
from shardproof.verify.stages.case import Case

MODELS = ("OddCubes", "OddOwnPair", "OddOwnUp", "OddDecaying", "OddRecalling", "OddPicked", "OddStreams")
EXPERTS = ("OddPicked", "OddPickedBiased")


@pytest.mark.timeout(300)
def test_mixers_experts_and_streams_run_as_planned() -> None:
    cases = (*(_case(name, ep=1) for name in MODELS), *(_case(name, ep=2) for name in EXPERTS))
    results = confirm_cases(cases, engine="inprocess")
    assert {
        case.loaded.title: result.findings for case, result in zip(cases, results, strict=True) if result.findings
    } == {}
    assert {result.verdict for result in results} == {Verdict.CONFIRMED}


def _case(name: str, *, ep: int) -> Case:
    loaded = load(f"tests.zoo.odd_mixers:{name}")
    return Case(twin(loaded, tp=2), suggest(loaded).plan, tp=2, ep=ep)
