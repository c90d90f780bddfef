"""The legal degrees from one proof agree with a proof at every degree, both ways; what forbids a degree is named."""

from dataclasses import replace

import pytest

from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.degrees import Degrees, Limit, degrees_within, spans
from shardproof.planner.ir.findings import Place
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.verify.proof.degrees import legal_degrees
from shardproof.verify.proof.prove import prove
from shardproof.verify.proof.tensor import check_tensor
from tests.versions import UNEVEN, wants

DEGREES = (2, 3, 4, 5, 6, 7, 8, 9, 12, 16)
ODD = ("OddParallel", "OddInterleaved", "OddGrouped", "OddSunk", "OddListed")


def by_hand(loaded: LoadedModel) -> Plan:
    return carried_plan(loaded, build(loaded))


def proved(loaded: LoadedModel, plan: Plan) -> set[int]:
    """The degrees of `DEGREES` with a proof of their own."""
    subject = subject_of(on_meta(loaded))
    return {degree for degree in DEGREES if not check_tensor(subject, plan.styles(subject.prefix), degree)}


def agrees(loaded: LoadedModel, plan: Plan) -> Degrees:
    found = legal_degrees(loaded, plan)
    assert {degree for degree in DEGREES if degree in found.legal} == proved(loaded, plan)
    assert set(found.legal).isdisjoint(found.forbidden)
    return found


@pytest.mark.parametrize("name", ODD)
def test_odd_models(name: str) -> None:
    loaded = load(f"tests.zoo.odd_models:{name}")
    agrees(loaded, suggest(loaded).plan)


@pytest.mark.parametrize(
    ("overrides", "legal"),
    [
        ({"num_attention_heads": "12", "num_key_value_heads": "6", "hidden_size": "96"}, (1, 2, 3, 6)),
        ({"num_attention_heads": "15", "num_key_value_heads": "5", "hidden_size": "120"}, (1, 5)),
        ({"num_attention_heads": "7", "num_key_value_heads": "7", "hidden_size": "56"}, (1, 7)),
    ],
)
def test_head_counts(overrides: dict[str, str], legal: tuple[int, ...]) -> None:
    divisible = {"intermediate_size": "2310", "vocab_size": "2310"}
    loaded = load("llama", overrides={"num_hidden_layers": "2", **divisible, **overrides})
    found = agrees(loaded, by_hand(loaded))
    assert found.legal == legal
    against = found.why_not(11)
    assert against is not None
    assert against.size == int(overrides["num_key_value_heads"])
    assert against.place.entry in ("layers.*.self_attn.q_proj", "layers.*.self_attn.k_proj")


def test_one_key_head_bears_no_split() -> None:
    one = {"num_attention_heads": "8", "num_key_value_heads": "1", "hidden_size": "64"}
    loaded = load("llama", overrides={"num_hidden_layers": "2", **one})
    found = agrees(loaded, by_hand(loaded))
    assert found.legal == (1,)
    against = found.why_not(2)
    assert against is not None
    assert against.place.module == "model.layers.0.self_attn"


@pytest.mark.parametrize("name", ["phi3", "mixtral", "falcon"])
def test_types(name: str) -> None:
    loaded = load(name, overrides={"num_hidden_layers": "2"})
    agrees(loaded, suggest(loaded).plan)


def test_a_single_element_is_proved_on_its_own() -> None:
    """The sizes allow 4 ranks; there each holds one key head, whose dim the code then drops."""
    loaded = load("tests.zoo.odd_models:OddLone")
    styles = {"aa": "colwise", "bb": "colwise", "cc": "colwise", "dd": "rowwise"}
    plan = Plan(tp=tuple(TpEntry(f"steps.*.one.{name}", style) for name, style in styles.items()))
    found = agrees(loaded, plan)
    assert found.legal == (1, 2)
    against = found.why_not(4)
    assert against is not None
    assert against.size is None
    assert found.why_not(8) == found.why_not(3) != against


def test_a_plain_shard_may_be_uneven_but_not_empty() -> None:
    loaded = load("llama", overrides={"num_hidden_layers": "2", "intermediate_size": "22"})
    plan = Plan(tp=tuple(entry for entry in by_hand(loaded).tp if ".mlp." in entry.pattern))
    found = agrees(loaded, plan)
    assert found.legal[:12] == ((1, 2, 3, 4, 5, 6, 8, 11, 22) if UNEVEN else (1, 2, 11, 22))
    against = found.why_not(7)
    assert against is not None
    assert (against.size, against.even) == (22, not UNEVEN)


def test_packed_blocks_may_leave_the_last_rank_less() -> None:
    loaded = load("phi3", overrides={"num_hidden_layers": "2", "intermediate_size": "24"})
    plan = Plan(
        tp=(TpEntry("layers.*.mlp.gate_up_proj", "packed_colwise"), TpEntry("layers.*.mlp.down_proj", "rowwise"))
    )
    found = agrees(loaded, plan)
    assert found.legal == ((1, 2, 3, 4, 5, 6, 8, 12, 24) if UNEVEN else (1, 2, 3, 4, 6, 8, 12, 24))
    against = found.why_not(7)
    assert against is not None
    assert against.place.entry == f"layers.*.mlp.{'gate_up_proj' if UNEVEN else 'down_proj'}"
    assert "24" in against.what
    assert "intermediate_size" in against.what


def test_a_wrong_plan_is_right_on_one_rank_only() -> None:
    loaded = load("llama", overrides={"num_hidden_layers": "2"})
    plan = by_hand(loaded)
    without = replace(plan, tp=tuple(entry for entry in plan.tp if not entry.pattern.endswith("down_proj")))
    found = legal_degrees(loaded, without)
    assert found.legal == (1,)
    against = found.why_not(8)
    assert against is not None
    assert against.size is None
    assert against.what == prove(loaded, without, tp=8).findings[0].message


def test_a_malformed_plan_is_right_nowhere() -> None:
    found = legal_degrees("llama", Plan(tp=(TpEntry("layers.*.mlp.up_proj", "sideways"),)))
    assert found.legal == ()


@wants("replicate")
def test_a_plan_that_shards_the_vocabulary_alone() -> None:
    found = legal_degrees("llama", Plan(tp=(TpEntry("layers.*.mlp.up_proj", "replicate"),), pp=()))
    assert {2, 3, 7, 64} <= set(found.legal)
    assert {limit.size for limit, _ in found.limits} == {32000}


def test_the_inference_and_the_verifier_agree() -> None:
    loaded = load("mixtral", overrides={"num_hidden_layers": "2"})
    suggestion = suggest(loaded)
    assert suggestion.degrees == legal_degrees(loaded, suggestion.plan).legal == (1, 2, 4, 8)


def test_words() -> None:
    even = Limit(8, even=True, what="8 parts of 128", place=Place("k_proj"))
    found = degrees_within((even, Limit(32, even=True, what="32", place=Place("q_proj"))))
    assert found.clauses() == (
        "1, 2, 4, 8",
        "3, 5, 6 and 1017 more are forbidden by k_proj: 8 parts of 128: every rank needs equally many",
    )
    assert spans((1, 2, 3, 5, 7, 8)) == "1-3, 5, 7-8"


@pytest.mark.parametrize(
    ("legal", "text"),
    [
        ((), "none"),
        ((1, 2, 4, 8), "1, 2, 4, 8"),
        ((1, 2, 3, 4, 8), "1-4, 8"),
        (tuple(range(1, 40, 2)), "1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, ... and 8 more"),
        (
            (*range(1, 101), *range(103, 200, 3)),
            "1-100, 103, 106, 109, 112, 115, 118, 121, 124, 127, 130, 133, ... and 22 more",
        ),
    ],
)
def test_a_long_list_is_cut_for_a_reader(legal: tuple[int, ...], text: str) -> None:
    assert Degrees(legal, {}).listed() == text


@pytest.mark.parametrize("degree", range(2, 12))
@pytest.mark.parametrize("size", range(1, 24))
def test_an_uneven_part_is_cut_as_torch_does(size: int, degree: int) -> None:
    import torch

    limit = Limit(size, even=False, what="", place=Place())
    assert limit.allows(degree) is (len(torch.empty(size).chunk(degree)) == degree)
