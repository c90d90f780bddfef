"""Pipeline plans read off the computation, and what is live across a cut."""

import pytest

from shardproof import suggest
from shardproof.planner.inference.call_sites import call_sites
from shardproof.planner.inference.pipeline import cut_nowhere, infer_pipeline
from shardproof.planner.ir.dataflow import Cut, Entrance, Live, Role, live_across
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import PpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from tests.zoo.stream_models import Core, Nest

FILE = "tests.zoo.stream_models"


def inferred(reference: str) -> tuple[tuple[PpEntry, ...], tuple[PpEntry, ...]]:
    model = build(load(reference))
    return infer_pipeline(model, trace(model))


def mixed(mix: str) -> Graph:
    return trace(build(load(f"{FILE}:StreamForCausalLM", overrides={"mix": mix})))


def across(
    graph: Graph, role: Role, *, stack: str = "core.pile", layer: int = 2, before: str = "core.zork"
) -> list[Live]:
    return [live for live in live_across(graph, Cut(stack, layer, (before,))) if live.role is role]


def test_learned_positions_and_nested_layers_of_opt() -> None:
    base, head = inferred("opt")
    assert [entry.module for entry in base] == [
        "decoder.embed_tokens",
        "decoder.embed_positions",
        "decoder.layers",
        "decoder.final_layer_norm",
    ]
    assert base[0] == PpEntry("decoder.embed_tokens", ("input_ids",), ("inputs_embeds",))
    assert base[2].inputs[:2] == ("hidden_states", "attention_mask")
    assert head == (PpEntry("lm_head", ("hidden_states",), ("logits",)),)


def test_falcon() -> None:
    base, head = inferred("falcon")
    assert base == (
        PpEntry("word_embeddings", ("input_ids",), ("inputs_embeds",)),
        PpEntry("h", ("hidden_states", "attention_mask"), ("hidden_states",)),
        PpEntry("ln_f", ("hidden_states",), ("hidden_states",)),
    )
    assert head == (PpEntry("lm_head", ("hidden_states",), ("lm_logits",)),)


def test_layers_are_what_tokens_pass_not_the_larger_tower_beside() -> None:
    base, _ = inferred("git")
    assert [entry.module for entry in base] == ["embeddings", "image_encoder", "visual_projection", "encoder.layer"]


def test_an_encoder_is_one_module_before_the_decoders_layers() -> None:
    base, _ = inferred("bart")
    assert base[0].module == "encoder"
    assert (
        PpEntry(
            "decoder.layers",
            ("hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"),
            ("hidden_states",),
        )
        in base
    )


def test_names_that_say_nothing() -> None:
    """Nested layers, a walrus, a helper method, a slice in a zip in an enumerate, layers that return tuples."""
    base, head = inferred(f"{FILE}:NestedForCausalLM")
    assert base == (
        PpEntry("inner.zork", ("ids",), ("vec",)),
        PpEntry("inner.spot", ("where",), ("where",)),
        PpEntry("inner.still", ("input",), ("w",)),
        PpEntry("inner.blk", ("w", "seen"), ("w",)),
        PpEntry("inner.fin", ("w",), ("done",)),
    )
    assert head == (PpEntry("out", ("logits",), ("words",)),)


def test_a_second_stream_is_an_input_of_the_layers() -> None:
    model = build(load(f"{FILE}:StreamForCausalLM", overrides={"mix": "skip"}))
    base, _ = infer_pipeline(model, trace(model))
    assert base == (
        PpEntry("zork", ("input_ids",), ("w",)),
        PpEntry("pile", ("w", "first"), ("w",)),
        PpEntry("fin", ("w",), ("logits",)),
    )


def test_calls_of_a_list_are_found_through_slice_zip_and_enumerate() -> None:
    (site,) = call_sites(Nest, "blk")
    assert site.positional == ("w", "seen")
    assert site.outputs == ("w",)


def test_rotary_embeddings_and_masks_are_made_anew_and_the_hidden_states_sent() -> None:
    graph = trace(build(load("llama")))
    (sent,) = across(graph, Role.SENT, stack="model.layers", before="model.embed_tokens", layer=16)
    assert sent.entrances == (Entrance(16, "hidden_states"),)
    assert graph.values[sent.value].shape[-1] == 4096
    anew = across(graph, Role.RECOMPUTED, stack="model.layers", before="model.embed_tokens", layer=16)
    made_in = {graph.ops[live.made].module for live in anew if live.made is not None}
    assert made_in == {"model", "model.rotary_emb"}


@pytest.mark.parametrize(
    ("mix", "entrances"),
    [
        ("plain", [(Entrance(2, "q"),)]),
        ("between", [(Entrance(2, "q"),)]),
        ("skip", [(Entrance(2, "q"),), (Entrance(2, "trace"), Entrance(3, "trace"))]),
        ("late", [(Entrance(2, "q"),), (Entrance(3, "trace"),)]),
    ],
)
def test_what_a_cut_carries(mix: str, entrances: list[tuple[Entrance, ...]]) -> None:
    graph = mixed(mix)
    assert [live.entrances for live in across(graph, Role.SENT)] == entrances
    assert not across(graph, Role.MISSED)


def test_what_changes_between_layers_is_sent_changed() -> None:
    graph = mixed("between")
    (sent,) = across(graph, Role.SENT)
    assert sent.made is not None
    assert graph.ops[sent.made].target == "aten.mul"


def test_what_joins_between_the_layers_is_missed() -> None:
    graph = mixed("outside")
    (missed,) = across(graph, Role.MISSED)
    assert missed.made is not None
    assert (graph.ops[missed.made].module, graph.ops[missed.used].module) == ("core.zork", "core")


def test_a_layer_that_runs_again_is_missed() -> None:
    missed = across(mixed("again"), Role.MISSED)
    assert missed
    assert all(live.made == live.used for live in missed)


def test_a_module_that_every_stage_has_is_no_reason_to_send() -> None:
    """Positions that no key names are made on every stage; only what derives from absent weights is sent."""
    model = build(load("opt"))
    graph = trace(model)
    stack, before = f"{base_prefix(model)}.decoder.layers", f"{base_prefix(model)}.decoder.embed_tokens"
    assert [live.entrances for live in across(graph, Role.SENT, stack=stack, before=before, layer=3)] == [
        (Entrance(3, "hidden_states"),)
    ]
    assert not across(graph, Role.MISSED, stack=stack, before=before, layer=3)


def test_a_layer_that_never_ran_has_no_cut() -> None:
    assert live_across(mixed("plain"), Cut("core.pile", 9)) == ()


@pytest.mark.parametrize(
    ("mix", "made"), [("outside", "core.zork"), ("again", "core.pile.0"), ("skip", None), ("plain", None)]
)
def test_a_model_that_can_be_cut_nowhere_gets_no_plan(mix: str, made: str | None) -> None:
    """Else the proposal would be one that its own proof refutes."""
    suggestion = suggest(load(f"{FILE}:StreamForCausalLM", overrides={"mix": mix}))
    assert bool(suggestion.plan.pp) is (made is None)
    reason = "there is no pipeline plan: core.pile can be cut nowhere: what "
    told = [note.removeprefix(reason) for note in suggestion.notes if note.startswith(reason)]
    assert [note.startswith(str(made)) for note in told] == [True] * (made is not None)


def test_some_cuts_that_cannot_be_made_are_no_reason_for_none() -> None:
    model = build(load("gemma3n_text"))
    graph = trace(model)
    assert cut_nowhere(model, graph, infer_pipeline(model, graph)[0]) is None


def test_a_table_that_the_head_reads_is_left_to_every_stage() -> None:
    """As a module that runs on both sides: a key would take it from the last stage."""
    suggestion = suggest(load(f"{FILE}:StreamForCausalLM", overrides={"mix": "raw"}))
    assert [entry.module for entry in suggestion.plan.pp] == ["pile", "fin"]


@pytest.mark.parametrize(
    ("mix", "why"),
    [
        ("lists", "the layers lie in the lists of core.piles, and stages are cut between the members of one list"),
        ("row", "no ModuleList holds the layers, between the members of which stages are cut"),
    ],
)
def test_layers_that_lie_in_no_one_list(mix: str, why: str) -> None:
    suggestion = suggest(load(f"{FILE}:StreamForCausalLM", overrides={"mix": mix}))
    assert suggestion.plan.pp == ()
    assert suggestion.notes[-1] == f"there is no pipeline plan: {why}"


def test_a_function_of_a_module_is_no_name_of_a_value() -> None:
    """`self.fin(torch.relu(w))` is called with a value that has no name."""
    assert {site.positional for site in call_sites(Core, "fin")} == {(None,), ("w",)}


def test_a_module_that_stands_twice_in_the_list_of_layers() -> None:
    suggestion = suggest(load(f"{FILE}:StreamForCausalLM", overrides={"mix": "shared"}))
    assert suggestion.plan.pp == ()
    why = "there is no pipeline plan: core.pile.0 and core.pile.2 are one module, which cannot be on one stage alone"
    assert suggestion.notes[-1] == why
