"""Dialects: how each client finds a key, what it makes of a style, and what the proof then says of the same plan."""

import ast
import inspect
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers.distributed import mixin, pipeline_parallel

from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.plan import Edit, Plan
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.transformers_facts.styles import modelled
from shardproof.planner.transformers_facts.version import minor_text
from shardproof.verify.clients.compile import compile_for
from shardproof.verify.clients.contract.source import forward_tree, function_tree
from shardproof.verify.clients.deepspeed.shard_sizes import Deal, deal_of
from shardproof.verify.clients.dialect import Dialect, Matching, UnknownStyle, first_match
from shardproof.verify.clients.page import page
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import DIALECTS, clients, find_dialect
from tests.clients_page import PAGE
from tests.gate import ROOT
from tests.versions import UNEVEN, wants

SMALL = {"num_hidden_layers": "2"}


@cache
def small(name: str, **overrides: str) -> tuple[LoadedModel, Plan]:
    loaded = load(name, overrides={**SMALL, **overrides})
    return loaded, carried_plan(loaded, build(loaded))


def codes(name: str, client: str, *, tp: int = 2, pp: int = 1, plan: Plan | None = None, **overrides: str) -> set[str]:
    loaded, carried = small(name, **overrides)
    found = prove_for(find_dialect(client), loaded, plan or carried, tp=tp, pp=pp).findings
    return {finding.code for finding in found if finding.severity is not Severity.WARNING}


@pytest.mark.parametrize(
    ("matching", "patterns", "path", "found"),
    [
        (Matching.EXACT, ["layers.*.c", "layers.*.c_proj"], "layers.3.c_proj", "layers.*.c_proj"),
        (Matching.PREFIX, ["layers.*.c", "layers.*.c_proj"], "layers.3.c_proj", "layers.*.c"),
        (Matching.PREFIX, ["proj", "layers.*.proj"], "layers.3.proj", "layers.*.proj"),
        (Matching.PREFIX, ["*.proj"], "layers.3.proj", None),
        (Matching.SUFFIX, ["q_proj"], "model.layers.3.q_proj", "q_proj"),
        (Matching.SUFFIX, ["layers.*.c"], "model.layers.3.c_proj", None),
        (Matching.EXACT, ["c"], "d", None),
    ],
)
def test_first_match(matching: Matching, patterns: list[str], path: str, found: str | None) -> None:
    assert first_match(matching, patterns, path) == found


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("vllm", "0.33"),
        ("vllm@0.32", "0.32"),
        ("vllm@0.24", "0.24"),
        ("vllm@0.24.3", "0.24"),
        ("vllm@0.31", "0.25"),
        ("sglang", "0.5.23"),
    ],
)
def test_a_version_is_read_as_the_last_that_was_not_later(name: str, version: str) -> None:
    assert find_dialect(name).version == version


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("vllm@0.24.3", "vllm 0.24"),
        ("vllm@0.31", "vllm 0.31 (read as 0.25)"),
        ("vllm@0.34", "vllm 0.34 (read as 0.33)"),
        ("transformers@4.57.6", "transformers 4.57"),
        (f"transformers@{minor_text()}", f"transformers {minor_text()}"),
    ],
)
def test_a_version_that_was_not_read_is_named(name: str, shown: str) -> None:
    assert find_dialect(name).name == shown


@pytest.mark.parametrize("version", ["4.58", "5.1", "5.99"])
def test_transformers_is_read_from_what_is_installed(version: str) -> None:
    with pytest.raises(ValueError, match=f"Transformers {version} is not the installed {minor_text()}"):
        find_dialect(f"transformers@{version}")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "llvm",
            "there is no client 'llvm'; the clients are transformers, vllm, sglang, tgi, torchtitan, deepspeed, nemo.",
        ),
        ("vllm@0.9", "vllm 0.9 was not read; the oldest that was is 0.24."),
        ("vllm@new", "'new' is no version of vllm; write it as 0.33."),
    ],
)
def test_an_unknown_client_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        find_dialect(name)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_dialect_cites_its_files_and_speaks_of_known_effects(dialect: Dialect) -> None:
    assert dialect.cites
    assert all(cite.endswith((".py", "/")) for cite in dialect.cites)
    assert set(dialect.styles.values()) <= {*STYLES, "replicate"}


def test_no_name_of_a_gathered_output_serves_both_engines() -> None:
    for effect in ("colwise_gather_output", "rowwise_split_input"):
        vllm, sglang = (
            {name for name, does in find_dialect(client).styles.items() if does == effect}
            for client in ("vllm", "sglang")
        )
        assert vllm
        assert sglang
        assert not vllm & sglang


def test_the_installed_transformers_is_the_one_that_was_read() -> None:
    """A drift test: the styles, the exact look-up, and the pipeline that does not read the plan."""
    dialect = find_dialect("transformers")
    assert set(dialect.styles) == set(modelled())
    assert dialect.unknown is UnknownStyle.REFUSED
    assert "base_model_pp_plan" in inspect.getsource(mixin)
    read = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(pipeline_parallel)))
        if isinstance(node, ast.Attribute)
    }
    assert not {name for name in read if name.endswith("pp_plan")}


@pytest.mark.parametrize("client", ["transformers", "vllm@0.24", "vllm@0.25", "vllm", "sglang", "tgi", "torchtitan"])
def test_the_plan_of_llama_is_right_for_everyone(client: str) -> None:
    assert codes("llama", client) == set()


def test_one_plan_is_proved_for_one_client_and_refuted_for_another() -> None:
    """Phi-3 gathers query, key and value; vLLM reads them as this rank's heads (measured: it fails at TP 2)."""
    assert codes("phi3", "transformers") == set()
    assert codes("phi3", "tgi") == set()
    assert codes("phi3", "vllm") == codes("phi3", "vllm@0.24") == {"BE415"}
    assert codes("phi3", "sglang") == {"BE411"}


def test_fusers_hide_a_wrong_entry_that_an_older_client_follows() -> None:
    _, plan = small("llama")
    wrong = plan.edited(Edit("model.layers.*.self_attn.k_proj", "colwise", None), "model")
    assert codes("llama", "vllm", plan=wrong) == set()
    assert codes("llama", "vllm@0.24", plan=wrong)
    assert codes("llama", "sglang", plan=wrong)


def test_norms_over_a_sharded_width_are_gathered_since_0_32() -> None:
    assert codes("olmo2", "vllm") == set()
    assert codes("olmo2", "vllm@0.24") == {"BE415"}


def test_key_value_heads_are_repeated_by_one_and_refused_by_the_other() -> None:
    assert codes("llama", "vllm", tp=4, num_key_value_heads="2") == set()
    assert codes("llama", "vllm@0.24", tp=4, num_key_value_heads="2") == {"BE414"}
    assert codes("llama", "sglang", tp=4, num_key_value_heads="2") == {"BE414"}


def test_gradients_count_for_a_client_that_hooks_them() -> None:
    _, plan = small("qwen3")
    bare = plan.edited(Edit("model.layers.*.self_attn.q_norm", "replicated_with_grad_allreduce", None), "model")
    assert codes("qwen3", "vllm", plan=bare) == set()
    assert codes("qwen3", "deepspeed", plan=bare) == {"TP207"}


@pytest.mark.parametrize("name", ["opt", "biogpt"])
def test_stages_that_are_silently_wrong_in_vllm(name: str) -> None:
    """Measured with no plan at PP 2: 8.4 and 0.38 nats."""
    loaded, _ = small(name)
    found = prove_for(find_dialect("vllm"), loaded, Plan(), tp=1, pp=2).findings
    assert {finding.code for finding in found} == {"BE433" if name == "opt" else "BE432"}
    assert found


def test_a_last_norm_outside_the_pipeline_plan_is_done_by_every_stage() -> None:
    _, plan = small("llama")
    without = Plan(tp=plan.tp, pp=plan.pp[:-1])
    loaded, _ = small("llama")
    found = prove_for(find_dialect("vllm"), loaded, without, tp=1, pp=2).findings
    assert [(finding.code, finding.place.module) for finding in found] == [("BE432", "model.norm")]


@pytest.mark.parametrize("client", ["vllm", "sglang"])
def test_a_packed_projection_is_gathered_where_the_client_cannot_cut_it(client: str) -> None:
    loaded, _ = small("glm")
    from shardproof.planner.inference.suggest import suggest

    compiled = compile_for(find_dialect(client), loaded, suggest(loaded).plan)
    styles = {entry.pattern: entry.style for entry in compiled.plan.tp}
    names = find_dialect(client).styles
    assert compiled.proof.verdict is Verdict.PROVED
    assert names[styles["layers.*.mlp.gate_up_proj"]] == "colwise_gather_output"
    assert names[styles["layers.*.mlp.down_proj"]] == "rowwise_split_input"
    assert list(compiled.losses) == ["layers.*.mlp"]


def test_a_key_for_other_configs_of_the_class_is_no_fault() -> None:
    assert codes("dots1", "vllm", first_k_dense_replace="0") == set()
    loaded, carried = small("dots1", first_k_dense_replace="0")
    found = prove_for(
        find_dialect("vllm"), loaded, carried.edited(Edit("model.layers.*.mlp.gates", None, "colwise"), "model")
    )
    assert {finding.place.entry for finding in found.findings if finding.severity is Severity.ERROR} == {
        "layers.*.mlp.gates"
    }


@pytest.mark.parametrize("client", ["vllm", "vllm@0.24", "sglang"])
def test_engines_refuse_features_that_do_not_come_out_even(client: str) -> None:
    assert codes("llama", client, intermediate_size="511") == {"BE414"}
    assert codes("qwen3_moe", client, moe_intermediate_size="47") == {"BE414"}
    assert codes("llama", "transformers", intermediate_size="511") == (set() if UNEVEN else {"TP201"})
    assert codes("llama", client, vocab_size="1001") == set()  # padded there


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
PACKED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 128}}},
}


@pytest.mark.parametrize(
    ("quantised", "degree", "refused"),
    [
        (FP8, 2, set()),
        (FP8, 4, {"gate_proj", "up_proj", "down_proj"}),  # 11008 / 4 is 21.5 blocks of 128
        ({**FP8, "modules_to_not_convert": ["mlp"]}, 4, set()),
        (AWQ, 4, {"down_proj"}),
        ({**AWQ, "group_size": -1}, 2, {"o_proj", "down_proj"}),
        (PACKED, 4, {"down_proj"}),
        ({**PACKED, "ignore": ["re:.*mlp.*"]}, 4, set()),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 4, set()),
        ({"quant_method": "bitsandbytes"}, 4, set()),
    ],
)
def test_a_rank_holds_whole_blocks_of_a_quantised_layer(
    quantised: dict[str, object], degree: int, refused: set[str], tmp_path: Path
) -> None:
    fields = load("llama", overrides={**SMALL, "intermediate_size": "11008"}).config.to_dict()
    architectures = ["LlamaForCausalLM"]
    (tmp_path / "config.json").write_text(
        json.dumps({**fields, "architectures": architectures, "quantization_config": quantised})
    )
    loaded = load(str(tmp_path))
    found = prove_for(find_dialect("vllm"), loaded, carried_plan(loaded, build(loaded)), tp=degree).findings
    errors = [finding for finding in found if finding.severity is Severity.ERROR]
    assert {finding.code for finding in errors} == ({"BE414"} if refused else set())
    assert {(finding.place.module or "").rpartition(".")[2] for finding in errors} == refused


def test_a_norm_of_a_part_is_gathered_and_what_follows_takes_a_part() -> None:
    from shardproof.planner.inference.suggest import suggest

    loaded, _ = small("bitnet", num_key_value_heads="10")
    compiled = compile_for(find_dialect("vllm"), loaded, suggest(loaded).plan)
    assert compiled.proof.verdict is Verdict.PROVED
    assert ("layers.*.mlp.down_proj", "rowwise") in {(entry.pattern, entry.style) for entry in compiled.plan.tp}
    older = prove_for(find_dialect("vllm@0.25"), loaded, compiled.plan)
    assert "TP206" in {finding.code for finding in older.findings}


def test_every_client_has_a_name() -> None:
    assert clients()[0] == "transformers"
    assert len(set(clients())) == len(clients())


def test_source_keeps_the_lines_of_its_file() -> None:
    tree = function_tree(small)
    assert tree is not None
    assert tree.name == "small"
    assert tree.lineno == inspect.getsourcelines(small)[1] + 1
    assert function_tree(len) is None
    assert forward_tree(nn.Linear) is not None


@wants("local_params")
def test_the_table_of_clients_is_the_generated_one() -> None:
    """With another version that has the same styles, the page differs in its number alone."""
    pinned = re.findall(r"(?m)^transformers==(\d+\.\d+)", (ROOT / "constraints.txt").read_text())
    made = page().replace(f"transformers {minor_text()}", f"transformers {pinned[0]}")
    assert PAGE.read_text() == made, "run: python -m tests.clients_page"


def test_what_an_engine_cuts_lies_in_plain_tensors_that_no_hook_has_to_reach() -> None:
    assert codes("gpt_oss", "vllm") == set()


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"hidden_size": "48", "num_attention_heads": "6", "num_key_value_heads": "3"}, set()),
        ({"num_key_value_heads": "1"}, set()),
        ({"tie_word_embeddings": "true"}, set()),
    ],
    ids=str,
)
def test_deepspeed_deals_whole_heads_and_keeps_tied_tables(fields: dict[str, Any], found: set[str]) -> None:
    """Measured in the engine: logits within 3e-6, gradients within 2e-6 of one device."""
    assert codes("qwen3", "deepspeed", **fields) == found


def test_the_heuristic_of_deepspeed_is_not_known() -> None:
    assert codes("stablelm", "deepspeed", plan=Plan(pp=small("llama")[1].pp)) == {"BE417"}


def test_uneven_heads_do_not_hide_a_wrong_entry() -> None:
    sizes: dict[str, Any] = {"hidden_size": "48", "num_attention_heads": "6", "num_key_value_heads": "3"}
    _, plan = small("llama", **sizes)
    wrong = plan.edited(Edit("model.layers.*.mlp.down_proj", "rowwise", None), "model")
    assert codes("llama", "deepspeed", plan=wrong, **sizes)
    wrong = plan.edited(Edit("model.layers.*.self_attn.k_proj", "colwise", None), "model")
    assert codes("llama", "deepspeed", plan=wrong, **sizes)


def test_a_tied_head_for_deepspeed_is_suggested_right() -> None:
    from shardproof.planner.inference.suggest import suggest

    loaded, _ = small("qwen3", tie_word_embeddings="true")
    assert compile_for(find_dialect("deepspeed"), loaded, suggest(loaded).plan).proof.verdict is Verdict.PROVED


def test_heads_are_dealt_as_the_engine_deals_them() -> None:
    """`module_inject/tp_shard.py`, 0.19.8, `get_shard_size`."""
    deal = deal_of(small("llama", num_attention_heads="6", num_key_value_heads="3", hidden_size="48")[0].config, 2)
    assert deal.sizes(24, "model.layers.0.self_attn.k_proj") == (16, 8)
    assert deal.sizes(96, "model.layers.0.mlp.gate_proj") == (48, 48)
    assert deal.sizes(96, "lm_head") == (48, 48)
    assert Deal(1, 2).sizes(8, "k_proj") == (8, 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt_neox", "no `model.embed_tokens`"),
        ("phi3", "no `self_attn.q_proj` in a layer"),
        ("glm", "no `mlp.gate_proj` in a layer"),
        ("opt", "no `model.embed_tokens`"),
        ("hunyuan_v1_dense", "`self_attn.query_layernorm` of a layer has parameters or buffers, and no case"),
    ],
)
def test_torchtitan_raises_for_what_it_has_no_name_for(name: str, words: str) -> None:
    loaded, carried = small(name)
    (found,) = prove_for(find_dialect("torchtitan"), loaded, carried, tp=2).findings
    assert found.code == "BE411"
    assert found.message.endswith(f"by its names: {words}.")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, set()) for name in ("llama", "qwen3", "qwen2", "olmo", "smollm3")),
        ("cohere", {"BE409"}),  # the head's forward, and its scale, is not run
        ("seed_oss", {"BE411"}),  # its biases are not made
        ("phi", {"TP205"}),
        ("gemma", {"BE411"}),
        ("starcoder2", {"BE411"}),
        ("olmo2", {"TP206"}),
    ],
)
def test_torchtitan_on_real_ranks_does_what_is_said(name: str, found: set[str]) -> None:
    """Measured in torchtitan 0.3.0 on two gloo ranks: logits and gradients 3e-6 from one device, 0.3 apart (phi), or an error."""
    assert codes(name, "torchtitan") == found


def test_torchtitan_s_own_experts_are_not_proved() -> None:
    assert codes("mixtral", "torchtitan") == {"BE417"}
