"""What `plan layout` says a rank holds and sends is what real ranks hold and send."""

from dataclasses import replace

import pytest

from benchmarks.layouts import measured_row, predicted
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.layouts.cost import Load, Machine, handed, rank_memory, sent
from shardproof.planner.layouts.measure import measure
from shardproof.planner.layouts.search import search
from shardproof.planner.layouts.space import Layout
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.twins.twin import twin
from shardproof.verify.proof.degrees import legal_degrees
from shardproof.verify.stages.case import Case
from tests.ranks.recorded import TOKENS, record, replicated, staged


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_parameters_and_collectives_are_those_of_real_ranks(name: str) -> None:
    small = twin(load(name), tp=2)
    plan = suggest(small).plan
    facts = measure(build(small), plan, legal_degrees(small, plan), context=16)
    everything = range(facts.depth + 2)
    load_ = Load(context=17, batch=3, width=8, train=True)
    for elements, collectives in record(Case(small, plan, 2, 1)):
        assert (elements, collectives) == predicted(facts, 2)
        assert rank_memory(facts, everything, load_, tp=2, dp=1).parameters == elements * 8
        traffic = sent(facts, everything, load_, tp=2)
        assert traffic.count == collectives.total()
        tokens = TOKENS[0] * TOKENS[1]
        assert traffic.bytes_per_token * tokens == sum(size * times * 8 for (_, size), times in collectives.items())


@pytest.mark.parametrize(("name", "tp"), [("llama", 1), ("llama", 2), ("qwen2_moe", 2)])
def test_gradients_that_replicas_sum(name: str, tp: int) -> None:
    small = twin(load(name), tp=2)
    plan = suggest(small).plan
    facts = measure(build(small), plan, legal_degrees(small, plan), context=16)
    found = search(facts, Degrees((1, 2), {}), Machine(2 * tp, 1e12), Load(context=12, batch=2, width=8, train=True))
    (choice,) = (one for one in found.choices if one.layout == Layout(tp, 1, 2))
    assert [summed * 8 for summed in replicated(Case(small, plan, tp, 1), 2)] == [choice.summed] * (2 * tp)


def test_experts_whole_on_real_ranks() -> None:
    """In serving: every rank holds half of the experts, and each dispatch sums once."""
    small = twin(load("mixtral"), tp=2)
    plan = suggest(small).plan
    facts = measure(build(small), plan, legal_degrees(small, plan), context=16, experts=True)
    elements, collectives = predicted(replace(facts, traffic=tuple(t for t in facts.traffic if not t.backward)), 2)
    for found in record(Case(small, plan, 2, 1, 2), train=False):
        assert found == (elements, collectives)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("bart", ""),
        ("axk2", ""),
        ("recurrent_gemma", ""),
        ("hrm_text", "cache not told"),
        ("prophetnet", "cache not told"),
        ("mllama", ""),
        ("deepseek_v4", ""),
        ("xmod", "estimated where data tells which tokens take part"),
    ],
)
def test_what_is_told_of_odd_programs(name: str, note: str) -> None:
    """An encoder's tokens beside the decoder's; choices through which no gradient flows; states that no cache object holds;
    layers called several times, some without a gradient; one module called with two lengths; what another model saw, of which
    no gradient is asked; tokens too few to be compressed; adapters of which data chooses.
    """
    row = measured_row(name, 2)
    assert (row.outcome, row.note) == ("equal", note)


@pytest.mark.parametrize(
    ("name", "tp", "pp"), [("gemma2", 1, 3), ("mixtral", 2, 2), ("gemma3n_text", 1, 2), ("gemma4_text", 1, 2)]
)
def test_what_stages_hold_and_send(name: str, tp: int, pp: int) -> None:
    """A tied table lies on both ends; what a stage is sent is more than hidden states in some models."""
    small = twin(load(name), tp=tp, pp=pp)
    plan = suggest(small).plan
    facts = measure(build(small), plan, legal_degrees(small, plan), context=16)
    for found in staged(Case(small, plan, tp, pp)):
        first, last = found.layers.start == 0, found.layers.stop == facts.depth
        units = [*([0] if first else []), *(layer + 1 for layer in found.layers), *([facts.depth + 1] if last else [])]
        load_ = Load(context=16, batch=1, width=8, train=True)
        assert rank_memory(facts, units, load_, tp=tp, dp=1).parameters == found.parameters * 8
        assert handed(facts, units, load_) * found.tokens == found.sent
