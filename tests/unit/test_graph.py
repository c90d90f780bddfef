"""The graph as a value: it reads back from JSON, prints, checks itself, and says what makes and uses each value."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import Arg, Graph, Module, Op, Ref, Value, refs
from shardproof.planner.ir.graph_json import graph_from_json, graph_to_json


def small() -> Graph:
    """A linear layer and a split of its output: %0 input, %1 weight, %2 product, %3 and %4 its halves."""
    values = (
        Value((2, 4), "float32"),
        Value((6, 4), "float32", "model.up.weight"),
        Value((2, 6), "float32"),
        Value((2, 3), "float32"),
        Value((2, 3), "float32"),
    )
    ops = (
        Op("aten.linear", (Ref(0), Ref(1)), (), (2,), "model.up", Source("modeling.py", 7)),
        Op("aten.split", (Ref(2), (3, 3)), (("dim", -1),), (3, 4), "model"),
    )
    modules = (
        Module("", "Head"),
        Module("model", "Base"),
        Module("model.up", "Linear", (("weight", 1),), (("in_features", 4), ("out_features", 6)), ("Module",)),
    )
    return Graph(modules, values, ops, (("hidden_states", 0),), (("a", 3), ("b", 4)), ("one note",))


scalars: st.SearchStrategy[Arg] = st.one_of(
    st.just(Ref(0)), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.booleans(), st.none()
)


def _tuples(inner: st.SearchStrategy[Arg]) -> st.SearchStrategy[Arg]:
    return st.lists(inner, max_size=3).map(tuple)


args: st.SearchStrategy[Arg] = st.recursive(scalars, _tuples, max_leaves=8)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Chains of ops, each with arbitrary arguments and one output."""
    count = draw(st.integers(1, 4))
    shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
    values = tuple(Value(draw(shapes), "float32") for _ in range(count + 1))
    ops = tuple(
        Op(
            draw(st.text(max_size=6)),
            (Ref(step), *draw(st.lists(args, max_size=3))),
            tuple(draw(st.dictionaries(st.text(max_size=4), args, max_size=2)).items()),
            (step + 1,),
            "",
            draw(st.one_of(st.none(), st.builds(Source, st.text(max_size=5), st.integers(1, 99)))),
        )
        for step in range(count)
    )
    return Graph((Module("", "Model"),), values, ops, (("x", 0),), (("y", count),))


@given(graphs())
def test_a_graph_reads_back(graph: Graph) -> None:
    assert graph_from_json(json.loads(json.dumps(graph_to_json(graph), allow_nan=False))) == graph


def test_the_small_graph_reads_back() -> None:
    assert graph_from_json(json.loads(json.dumps(graph_to_json(small())))) == small()


def test_a_graph_prints_one_op_a_line() -> None:
    assert str(small()).splitlines() == [
        "input hidden_states %0 float32[2, 4]",
        "%2: float32[2, 6] = aten.linear(%0, model.up.weight)  # model.up modeling.py:7",
        "%3: float32[2, 3], %4: float32[2, 3] = aten.split(%2, [3, 3], dim=-1)  # model",
        "output a %3",
        "output b %4",
    ]


def test_a_value_used_before_it_is_made_is_refused() -> None:
    values = (Value((1,), "float32"), Value((1,), "float32"))
    with pytest.raises(ValueError, match=r"op 0 \(aten.neg\) uses %1 before it is made."):
        Graph((), values, (Op("aten.neg", (Ref(1),), (), (0,), ""),), (), ())


def test_an_output_that_is_never_made_is_refused() -> None:
    with pytest.raises(ValueError, match="output 'y' is never made"):
        Graph((), (Value((1,), "float32"),), (), (), (("y", 0),))


def test_what_makes_and_what_uses_a_value() -> None:
    graph = small()
    assert graph.producer == {2: 0, 3: 1, 4: 1}
    assert graph.users == {0: (0,), 1: (0,), 2: (1,)}
    assert graph.parameters == {"model.up.weight": 1}


def test_arguments_by_position_or_by_name() -> None:
    split = small().ops[1]
    assert split.arg(1, "sizes") == (3, 3)
    assert split.arg(2, "dim", 0) == -1
    assert split.arg(3, "other", 5) == 5
    assert list(refs((Ref(3), (1, (Ref(4), Ref(3)))))) == [3, 4, 3]
