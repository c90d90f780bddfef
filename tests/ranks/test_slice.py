"""A slice of the model types through every level, on whatever version of Transformers is installed: suggested, proved, run."""

from collections.abc import Iterator

import pytest

from shardproof import Severity, Verdict, load, prove, suggest
from shardproof.planner.inputs.run_modes import has_eager
from shardproof.planner.tracing.programs import on_meta
from shardproof.planner.twins.twin import twin
from shardproof.verify.run.inprocess import InProcess
from shardproof.verify.run.verdicts import findings_of, measures_of
from shardproof.verify.stages.case import Case

TYPES = ("llama", "gpt2", "gpt_oss", "mamba", "qwen3_moe")
SMALL = {"num_hidden_layers": 4}
ASKED = ("evaluation", "training", "decoding")


@pytest.fixture(scope="module")
def ranks() -> Iterator[InProcess]:
    with InProcess(2) as made:
        yield made


@pytest.mark.parametrize("name", TYPES)
def test_proof_and_run_agree_and_ask_every_question(name: str, ranks: InProcess) -> None:
    model = load(name, overrides=SMALL)
    plan = suggest(model).plan
    result = prove(model, plan, pp=2 if plan.pp else 1)
    assert result.verdict is Verdict.PROVED
    assert result.scope is not None
    own = ("eager attention",) if has_eager(on_meta(model)) else ()
    assert result.scope.modes == (*ASKED, *own)
    assert not plan.pp or result.scope.stages == ASKED
    small = twin(model, tp=2)
    cases = [Case(small, plan, 2)] + ([Case(twin(model, tp=1, pp=2), plan, pp=2)] if plan.pp else [])
    for case in cases:
        outcomes = ranks.check(case)
        assert not [one for one in findings_of(case, outcomes) if one.severity is not Severity.WARNING]
        assert {"decoded logits", "gradient"} <= set(measures_of(case, outcomes))
