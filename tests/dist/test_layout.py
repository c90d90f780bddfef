"""What `plan layout` says a rank holds and sends is what real ranks hold and send."""

from collections import Counter

import pytest

from planner.api import suggest
from planner.frontend.load import build, load
from planner.frontend.twin import twin
from planner.search.cost import Facts, Load, held, sent
from planner.search.measure import measure
from tests.dist.recorded import TOKENS, record
from verify.degrees import legal_degrees
from verify.dynamic.cases import Case


def predicted(facts: Facts, tp: int) -> Counter[tuple[str, int]]:
    """Collectives by kind and elements of a rank, for the tokens of the recording."""
    tokens = TOKENS[0] * TOKENS[1]
    return Counter((one.kind.value, one.per_rank(tp) * tokens) for one in facts.traffic)


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_parameters_and_collectives_are_those_of_real_ranks(name: str) -> None:
    small = twin(load(name), tp=2)
    plan = suggest(small).plan
    facts = measure(build(small), plan, legal_degrees(small, plan), context=16)
    everything = range(facts.depth + 2)
    load_ = Load(context=17, batch=3, width=8, train=True)
    for elements, collectives in record(Case(small, plan, 2, 1)):
        assert collectives == predicted(facts, 2)
        assert held(facts, everything, load_, tp=2, dp=1).parameters == elements * 8
        traffic = sent(facts, everything, load_, tp=2)
        assert traffic.count == collectives.total()
        tokens = TOKENS[0] * TOKENS[1]
        assert traffic.bytes_per_token * tokens == sum(size * times * 8 for (_, size), times in collectives.items())
