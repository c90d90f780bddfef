"""Wrong pipeline plans are refuted from the trace, right ones are not."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from torch import nn

from shardproof.planner.inference.pipeline import infer_pipeline
from shardproof.planner.ir.findings import Fault, Finding, Severity
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, PpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from shardproof.verify.proof.pipeline import check_chunks, check_pp

TYPES = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox", "opt", "falcon", "mixtral", "deepseek_v3")
STREAMS = "tests.zoo.stream_models:StreamForCausalLM"


@cache
def subject(reference: str, mix: str = "") -> tuple[nn.Module, Graph, Plan]:
    """A model, its trace, and the plan inferred from it."""
    model = build(load(reference, overrides={"mix": mix} if mix else {}))
    graph = trace(model)
    base, head = infer_pipeline(model, graph)
    return model, graph, Plan(pp=base, head_pp=head)


def found(reference: str, change: Callable[[Plan], Plan] = lambda plan: plan, *, mix: str = "") -> list[Finding]:
    model, graph, plan = subject(reference, mix)
    return list(check_pp(model, graph, change(plan)))


def without(module: str) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, pp=tuple(entry for entry in plan.pp if entry.module != module))


def ordered(*modules: str) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, pp=tuple(next(e for e in plan.pp if e.module == name) for name in modules))


def changed(key: str, /, **fields: object) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        return replace(plan, pp=tuple(replace(e, **fields) if e.module == key else e for e in plan.pp))  # type: ignore[arg-type]

    return change


def added(entry: PpEntry, *, at: int) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, pp=(*plan.pp[:at], entry, *plan.pp[at:]))


@pytest.mark.parametrize("name", TYPES)
def test_inferred_and_carried_plans_are_right(name: str) -> None:
    assert found(name) == []
    model, graph, _ = subject(name)
    carried = carried_plan(load(name), model)
    if carried.pp:
        assert check_pp(model, graph, carried) == ()


@pytest.mark.parametrize("name", TYPES)
def test_every_key_with_weights_is_missed(name: str) -> None:
    model, _, plan = subject(name)
    for entry in plan.pp:
        if list(model.get_submodule(f"{model.base_model_prefix}.{entry.module}").parameters()):
            (finding,) = found(name, without(entry.module))
            assert (finding.code, finding.place.entry) == ("PP304", entry.module)


@pytest.mark.parametrize("name", TYPES)
def test_every_two_keys_that_change_places_are_noticed(name: str) -> None:
    keys = [entry.module for entry in subject(name)[2].pp]
    for one in range(len(keys)):
        for other in range(one + 1, len(keys)):
            swapped = list(keys)
            swapped[one], swapped[other] = keys[other], keys[one]
            assert [finding.code for finding in found(name, ordered(*swapped))] == ["PP302"]


def test_a_key_that_names_nothing() -> None:
    (finding,) = found("llama", changed("norm", module="final_norm"))
    assert (finding.code, finding.place.entry) == ("PP301", "final_norm")
    assert finding.message == 'the pipeline plan names "model.final_norm", which is no module'


def test_no_plan() -> None:
    (finding,) = found("llama", lambda plan: replace(plan, pp=()))
    assert finding.code == "PL104"


def test_the_same_module_twice() -> None:
    (finding,) = found("llama", added(PpEntry("norm", ("hidden_states",), ("hidden_states",)), at=3))
    assert finding.code == "PP304"
    assert finding.message == '"model.norm" and "model.norm" name the same module, which would run twice'


@pytest.mark.parametrize("beside", [True, False])
def test_one_layer_is_no_key(beside: bool) -> None:
    one = PpEntry("layers.0", ("hidden_states",), ("hidden_states",))
    change = added(one, at=2) if beside else changed("layers", module="layers.0")
    (finding,) = found("llama", change)
    assert finding.code == "PP304"
    assert finding.message == '"model.layers.0" is one of the layers, and a key names all of them'


def test_rotary_embeddings_on_the_first_stage_only() -> None:
    """Named as a key they are absent behind a cut, so that what they give would have to be sent, and is not listed."""
    (finding,) = found("llama", added(PpEntry("rotary_emb", ("position_ids",), ("position_embeddings",)), at=1))
    assert finding.code == "PP303"
    assert finding.message == (
        '"model.layers" does not list "position_embeddings", which its layers get from model.rotary_emb, '
        "on the first stage only"
    )
    assert finding.place.source is not None
    assert finding.place.source.file == "transformers/models/llama/modeling_llama.py"


def test_rotary_embeddings_that_are_sent() -> None:
    keyed = added(PpEntry("rotary_emb", ("position_ids",), ("position_embeddings",)), at=1)
    listed = changed("layers", inputs=("hidden_states", "attention_mask", "position_embeddings"))
    assert found("llama", lambda plan: listed(keyed(plan))) == []


def test_layers_that_do_not_list_the_hidden_states() -> None:
    (finding,) = found("llama", changed("layers", inputs=("attention_mask",)))
    assert finding.code == "PP303"
    assert 'does not list "hidden_states"' in finding.message


@pytest.mark.parametrize("fields", [{"inputs": ()}, {"outputs": ()}])
def test_layers_that_list_nothing(fields: dict[str, tuple[str, ...]]) -> None:
    (finding,) = found("llama", changed("layers", **fields))
    assert (finding.code, finding.severity) == ("PP303", Severity.ERROR)


@pytest.mark.parametrize("fields", [{"inputs": ("zork",)}, {"outputs": ("zork",)}])
def test_a_name_that_the_code_does_not_know_is_a_warning(fields: dict[str, tuple[str, ...]]) -> None:
    (finding,) = found("llama", changed("norm", **fields))
    assert (finding.code, finding.severity) == ("PP303", Severity.WARNING)
    assert finding.message == '"model.norm" lists "zork", a name that LlamaModel, which calls it, does not use'


@pytest.mark.parametrize("mix", ["plain", "skip", "late", "between"])
def test_streams_that_enter_the_layers_can_be_sent(mix: str) -> None:
    assert found(STREAMS, mix=mix) == []


def test_a_table_that_the_head_reads_needs_no_key() -> None:
    assert found(STREAMS, mix="raw") == []


def test_a_module_that_stands_twice_in_the_list_of_layers() -> None:
    (finding,) = found(STREAMS, mix="shared")
    assert (finding.code, finding.fault) == ("PP304", Fault.MODEL)
    assert finding.message == '"core.pile.0" and "core.pile.2" are one module, which cannot be on one stage alone'


def test_a_second_stream_that_is_not_listed() -> None:
    (finding,) = found(STREAMS, changed("pile", inputs=("q",)), mix="skip")
    assert finding.code == "PP303"
    assert finding.message == (
        '"core.pile" does not list "trace", which its layers get from core.zork, on the first stage only'
    )


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("outside", "what embedding makes in core.zork is needed behind it, by aten.add in core"),
        ("again", "core.pile.0 runs again behind it"),
    ],
)
def test_models_that_cannot_be_cut(mix: str, message: str) -> None:
    (finding,) = found(STREAMS, mix=mix)
    assert (finding.code, finding.fault) == ("PP303", Fault.MODEL)
    assert finding.message == f'"core.pile" cannot be cut before layer 1: {message}'
    assert finding.place.source is not None
    assert finding.place.source.file == "tests/zoo/stream_models.py"


def test_a_norm_on_both_sides_of_the_layers_is_left_to_every_stage() -> None:
    assert "norm" not in [entry.module for entry in subject("nanochat")[2].pp]
    assert found("nanochat") == []


def test_layers_that_read_the_keys_of_another_layer_forbid_the_cuts_between() -> None:
    """The later ones of a kind stand in the graph as repeats, and read what the first one reads."""
    (finding,) = found("gemma3n_text")
    assert (finding.code, finding.severity) == ("PP303", Severity.WARNING)
    assert finding.message.startswith(
        '"model.layers" cannot be cut before layer 19 to 34: what aten.transpose makes in'
    )
    model, graph, plan = subject("gemma3n_text")
    (asked,) = check_pp(model, graph, plan, bounds=(10, 25))
    assert (asked.code, asked.severity) == ("PP303", Severity.ERROR)
    assert asked.message.startswith('"model.layers" cannot be cut before layer 25:')
    assert check_pp(model, graph, plan, bounds=(6, 12)) == ()


def test_every_layer_on_one_stage() -> None:
    assert check_chunks((range(3), range(3, 7)), 7) == ()
    for chunks, message in (
        ((range(4), range(3, 7)), "layer 3 is on 2 stages"),
        ((range(2), range(3, 7)), "layer 2 is on no stage"),
        ((range(3), range(3, 6)), "layer 6 is on no stage"),
    ):
        (finding,) = check_chunks(chunks, 7)
        assert (finding.code, finding.message) == ("PP304", message)
