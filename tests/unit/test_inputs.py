"""What a model is traced on: every part of it takes part, where the signature and the config tell how."""

import pytest

from shardproof.planner.inputs.example import caching
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace


@pytest.mark.parametrize("name", ["t5", "bart", "bert", "vit", "llava", "qwen2_vl", "internvl", "git"])
def test_every_parameter_takes_part(name: str) -> None:
    graph = trace(build(load(name)))
    used = {number for op in graph.ops for number in op.inputs}
    repeated = tuple(f"{module.path}." for module in graph.modules if module.repeats)
    idle = [
        value.name
        for number, value in enumerate(graph.values)
        if value.name is not None and number not in used and not value.name.startswith(repeated)
    ]
    assert [name for name in idle if "inv_freq" not in name and not name.startswith("constant")] == []


def test_what_a_model_refuses_is_said() -> None:
    notes = trace(build(load("gemma3"))).notes
    assert any("traced on fewer inputs" in note and "stride should not be zero" in note for note in notes)


def test_states_of_another_model_are_given_to_a_decoder_that_names_them() -> None:
    assert "cross_attention_states" in dict(trace(build(load("mllama"))).inputs)


def test_an_encoder_decoder_is_the_whole_of_it() -> None:
    assert load("bart").model_class.__name__ == "BartForConditionalGeneration"
    assert dict(trace(build(load("t5"))).inputs).keys() == {"input_ids", "decoder_input_ids"}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("wav2vec2", {"input_values"}),
        ("audio-spectrogram-transformer", {"input_values"}),
        ("whisper", {"input_features", "decoder_input_ids"}),
        ("videomae", {"pixel_values"}),
        ("qwen2_5_vl_vision", {"hidden_states", "grid_thw"}),
        ("blip_2_qformer", {"query_embeds", "encoder_hidden_states"}),
        ("bros", {"input_ids", "bbox"}),
    ],
)
def test_what_a_model_without_tokens_alone_takes_is_given(name: str, given: set[str]) -> None:
    assert dict(trace(build(load(name))).inputs).keys() <= given


def test_a_tower_that_no_auto_class_knows_is_the_model_named_like_its_config() -> None:
    assert load("siglip_text_model").model_class.__name__ == "SiglipTextModel"
    assert load("colpali").model_class.__name__ == "ColPaliForRetrieval"
    with pytest.raises(LoadError, match=r"know no LwDetrViTConfig; give .*:LwDetrViTEncoder or .*:LwDetrViTBackbone"):
        load("lw_detr_vit")


def test_a_cache_is_asked_of_models_that_know_of_one() -> None:
    assert caching(build(load("llama")), True) == {"use_cache": True}
    assert caching(build(load("vit")), True) == {}
