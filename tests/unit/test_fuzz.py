"""A slice of the random models, and every failure that they ever found, by name."""

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.fuzz import FuzzRanks, is_failure, judged
from benchmarks.fuzz_models import DISPATCH, MODEL, FuzzCase, FuzzPlan, cases, drawn, usual
from shardproof.planner.loading.load import load
from shardproof.verify.proof.prove import prove

SEED, CASES = 11, 10


@pytest.fixture(scope="module")
def ranks() -> Iterator[FuzzRanks]:
    with FuzzRanks() as started:
        yield started


@seed(SEED)
@settings(
    max_examples=CASES,
    phases=(Phase.generate, Phase.shrink),
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(case=cases(most=2))
def test_the_proof_and_the_ranks_do_not_contradict_each_other(ranks: FuzzRanks, case: FuzzCase) -> None:
    assert not is_failure(judged(case, ranks))


def tensor(parts: Mapping[str, str]) -> FuzzPlan:
    return FuzzPlan(tuple(sorted(usual(parts).items())))


STAGES = FuzzPlan(tp=1, pp=2)
HEAD = FuzzPlan((("head", "colwise_gather_output"),), tp=2)
EXPERTS = FuzzPlan((("head", "colwise_gather_output"),), tuple(DISPATCH.items()), 2, 2)

FOUND: list[tuple[dict[str, str], FuzzPlan | None, str]] = [
    # A cut that a cat, or a write, puts together again was accused.
    ({"steps": "halves"}, None, "not proved, confirmed"),
    ({"steps": "halves product"}, None, "refuted, refuted"),
    ({"steps": "loop by number"}, None, "not proved, confirmed"),
    # A rank's identity matrix was accused.
    ({"steps": "eye"}, None, "not proved, confirmed"),
    # A branch on a part of the features was accused, although the ranks took the same side.
    ({"steps": "any of a part"}, None, "not proved, confirmed"),
    ({"steps": "on a part"}, None, "not proved, confirmed"),
    # Experts whose body stands behind `if mask.any()` were accused: their output was all zeros in the trace.
    ({"experts": "masked"}, None, "not proved, confirmed"),
    ({"experts": "masked"}, EXPERTS, "proved, confirmed"),
    # What layers of one stage leave for another in a mode that no stage was traced in was proved.
    ({"frame": "leaves a tensor in decoding", "mixer": "eager"}, STAGES, "refuted, refuted"),
    ({"frame": "leaves a tensor in training"}, STAGES, "refuted, refuted"),
    # A count of calls was proved: the trace of one stage went on where that of another had stopped.
    ({"steps": "counter", "num_hidden_layers": "3"}, STAGES, "refuted, refuted"),
    # Training that draws random numbers was left out of a run of stages without a word.
    ({"frame": "leaves a tensor in training", "steps": "noise in training"}, STAGES, "refuted, not decided"),
    # Stages that draw random numbers were proved.
    ({"steps": "drawn for a part"}, STAGES, "not proved, refuted"),
    # Evaluation that draws random numbers was proved without a word of seeds, and its numbers were compared.
    ({"steps": "drawn for a part"}, HEAD, "proved, not decided"),
    # A module that layers of several stages share was emptied where one of them was absent: the run was wrong.
    ({"shared": "true"}, STAGES, "proved, confirmed"),
    # A loop over the parts of a shard was accused of its smaller number of parts.
    ({"steps": "loop over parts"}, None, "not proved, confirmed"),
    # A hook on the gradient of what a stage received was not seen in the stage's trace: the stage was accused.
    ({"steps": "gradient of the input centred"}, STAGES, "proved, confirmed"),
    # The run asked one device and the ranks a different number of times, and what a call leaves counted as a difference.
    ({"steps": "number of calls"}, None, "proved, confirmed"),
    ({"steps": "number of calls"}, STAGES, "proved, confirmed"),
    # A function with a memory made nothing in the second trace, and a table that the first layer makes forbade every cut.
    ({"steps": "cached by tokens"}, None, "proved, confirmed"),
    ({"steps": "table by tokens"}, STAGES, "proved, confirmed"),
    ({"steps": "cached by width"}, None, "refuted, refuted"),
    # A guard against NaN was accused of what it never does.
    ({"steps": "not a number in the input"}, None, "proved, confirmed"),
    ({"steps": "not a number in a part"}, None, "proved, confirmed"),
    ({"steps": "infinity in a mask"}, None, "refuted, refuted"),  # and the guard asks for what the code itself has made
    ({"steps": "all finite"}, None, "not proved, confirmed"),
    ({"steps": "above the mean"}, None, "not proved, confirmed"),
    # Numbers drawn past torch were compared without a word; those of a fixed seed were accused.
    ({"steps": "by Python"}, None, "proved, not decided"),
    ({"steps": "by numpy"}, None, "proved, not decided"),
    ({"steps": "from a seed"}, None, "proved, confirmed"),
    ({"steps": "from a seed, by width"}, None, "refuted, refuted"),
    # The size of what a search finds is read without an op: a search of a part counted as dead.
    ({"steps": "as many as are positive"}, None, "not proved, refuted"),
    ({"steps": "as many as a mask takes"}, None, "refuted, refuted"),
    ({"steps": "as many in the input"}, None, "proved, confirmed"),
    # Groups that are taken apart and put together again were accused.
    ({"steps": "gated halves"}, None, "proved, confirmed"),
    ({"steps": "side by side"}, None, "proved, confirmed"),
    ({"steps": "shuffled and back"}, None, "not proved, confirmed"),
    ({"steps": "parts by number"}, None, "not proved, confirmed"),
    ({"steps": "written where positive"}, None, "not proved, confirmed"),
    ({"steps": "checkpointed"}, None, "proved, confirmed"),
]


@pytest.mark.parametrize(("parts", "plan", "came"), FOUND, ids=lambda one: str(one)[:60])
def test_what_random_models_found(ranks: FuzzRanks, parts: dict[str, str], plan: FuzzPlan | None, came: str) -> None:
    assert judged(FuzzCase(tuple(parts.items()), (plan or tensor(parts),)), ranks) == came


def test_the_same_seed_gives_the_same_pairs() -> None:
    assert list(drawn(20, 3)) == list(drawn(20, 3))
    assert list(drawn(20, 3)) != list(drawn(20, 4))
    assert sum(len(case.plans) for case in drawn(20, 3)) == 20


def test_a_smaller_case_has_no_entries_for_what_it_lacks() -> None:
    parts = (("mixer", "heads"), ("steps", "silu;gate"))
    smaller = list(FuzzCase(parts, (tensor(dict(parts)),)).smaller)
    assert any(not any("mix." in pattern for pattern, _ in case.plans[0].styles) for case in smaller)
    assert any(case.steps == ("silu",) and "layers.*.feed.gate" not in dict(case.plans[0].styles) for case in smaller)


def test_numbers_that_every_rank_draws_are_an_assumption() -> None:
    model = load(MODEL, overrides={"steps": "drawn for a part"})
    result = prove(model, HEAD.plan, tp=2)
    assert result.scope is not None
    assert any("every rank is taken to draw the same ones" in one for one in result.scope.assumptions)
