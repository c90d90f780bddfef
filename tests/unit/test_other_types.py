"""Types that are no causal language models: what their forwards are given, which class is built, and twins whose parts fit."""

from copy import deepcopy
from dataclasses import replace
from functools import wraps

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.others.outcome import Outcome, outcome
from benchmarks.zoo.rows import Judged, Row, row_of
from shardproof.planner.inputs.documented import documented
from shardproof.planner.inputs.example import Sizes, example_inputs
from shardproof.planner.inputs.mended import InputEdit, edits
from shardproof.planner.inputs.numbers import fullest_inputs, vocabulary
from shardproof.planner.inputs.run_modes import has_unknown_cache
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.agreement import agreeing
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.twin import twin
from shardproof.verify.proof.prove import prove
from shardproof.verify.run.gradient_questions import OWN_LOSS
from shardproof.verify.run.inputs import inputs
from shardproof.verify.run.observed import Observed
from shardproof.verify.run.questions import observe
from tests.versions import wants_type


def _given(name: str) -> dict[str, tuple[int, ...]]:
    model = build(load(name))
    trace(model)
    return {name: tuple(value.shape) for name, value in example_inputs(model).items()}


def test_a_docstring_says_the_shape_of_an_argument() -> None:
    said = documented(build(load("decision_transformer")))
    assert said["states"].dims == ("batch_size", "episode_length", "state_dim")
    assert said["timesteps"].whole and not said["states"].whole


@pytest.mark.parametrize(
    ("name", "given"),
    [
        # the docstring's shapes; what is None where the forward raises is given too
        ("decision_transformer", {"states": (3, 17, 17), "actions": (3, 17, 4), "timesteps": (3, 17)}),
        ("granite_speech_encoder", {"hidden_states": (3, 17, 160)}),  # a width that a linear layer asks for
        ("mgp-str", {"pixel_values": (3, 3, 32, 128)}),  # not square
        ("owlvit_text_model", {"input_ids": (3, 16)}),  # fewer positions than the usual tokens
        ("efficientloftr", {"pixel_values": (3, 2, 3, 224, 224)}),  # pairs of images
        pytest.param(  # sizes from numbers of the constructor
            "pocket_tts_audio_tokenizer_encoder",
            {"input_values": (3, 1, 6400)},
            marks=wants_type("pocket_tts_audio_tokenizer_encoder"),
        ),
    ],
)
def test_a_forward_is_given_what_it_asks_for(name: str, given: dict[str, tuple[int, ...]]) -> None:
    assert given.items() <= _given(name).items()


def test_an_image_stays_square_and_fits_the_positions() -> None:
    model = build(load("vit"))
    error = RuntimeError("The size of tensor a (17) must match the size of tensor b (197) at non-singleton dimension 1")
    given = {"pixel_values": torch.empty(3, 3, 64, 64, device="meta")}
    found = [edit.dims for (edit,) in edits(model, given, error, Sizes())]
    assert ("batch_size", 3, 224, 224) in found
    assert all(dims is None or dims[-1] == dims[-2] for dims in found)


@pytest.mark.parametrize(
    ("name", "told", "asked", "given"),
    [
        (  # flattened patches as a convolution takes them
            "vit",
            "not enough values to unpack (expected 5, got 2)",
            {"pixel_values": (12, 588)},
            (1, 12, 3, 14, 14),
        ),
        (  # two images that the model puts on top of each other
            "vit",
            "Input image size (1792*448) doesn't match model (896*448).",
            {"pixel_values": (3, 3, 896, 448)},
            ("batch_size", 3, 448, 448),
        ),
        (
            "wav2vec2",
            "Calculated padded input size per channel: (5). Kernel size: (8). Kernel size can't be greater",
            {"input_values": (3, 6400)},
            ("batch_size", 25600),
        ),
    ],
)
def test_a_message_asks_for_another_shape(
    name: str, told: str, asked: dict[str, tuple[int, ...]], given: tuple[int | str, ...]
) -> None:
    tensors = {one: torch.empty(shape, device="meta") for one, shape in asked.items()}
    found = [edit.dims for (edit,) in edits(build(load(name)), tensors, RuntimeError(told), Sizes())]
    assert given in found


def test_a_mask_follows_the_length_of_what_it_masks() -> None:
    model = build(load("whisper", overrides={"encoder_layers": 1, "decoder_layers": 1}))
    given = {"input_features": torch.empty(3, 80, 256, device="meta"), "mask": torch.ones(3, 256, dtype=torch.long)}
    now = InputEdit("input_features", ("batch_size", 80, 100)).apply(model, given, Sizes())
    assert now["input_features"].shape == (3, 80, 100) and now["mask"].tolist() == [[1] * 100] * 3


def test_an_argument_documented_as_another_is_as_large() -> None:
    model = build(load("seggpt", overrides={"num_hidden_layers": 1}))
    given = {"pixel_values": torch.empty(3, 3, 896, 448, device="meta")}
    now = InputEdit("prompt_pixel_values").apply(model, given, Sizes())
    assert now["prompt_pixel_values"].shape == (3, 3, 896, 448)
    less = InputEdit("pixel_values", ("batch_size", 3, 448, 448)).apply(model, now, Sizes())
    assert {value.shape for value in less.values()} == {(3, 3, 448, 448)}


def test_a_token_is_one_of_the_vocabulary_where_a_table_has_rows_for_several_codebooks() -> None:
    model = build(load("csm_depth_decoder_model", overrides={"num_hidden_layers": 1}))
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    assert vocabulary(model) == load("csm_depth_decoder_model").config.vocab_size < max(tables)


def test_a_default_config_without_a_vocabulary_gets_one() -> None:
    assert load("esm").config.vocab_size > 0


def test_a_part_that_keeps_a_cache_out_of_reach_is_no_cache_of_the_whole() -> None:
    assert not has_unknown_cache(build(load("decision_transformer", overrides={"n_layer": 1})))


def test_a_model_with_tied_tables_that_transformers_does_not_find_is_refuted() -> None:
    few = {"encoder_layers": 1, "decoder_layers": 1}
    loaded = load("rag", overrides={f"generator.{name}": number for name, number in few.items()})
    found = prove(loaded, Plan((TpEntry("generator.lm_head", "colwise_gather_output"),)), tp=2)
    assert found.verdict is Verdict.REFUTED
    assert "a method get_input_embeddings in RagModel" in found.findings[0].needed


def test_a_loss_that_one_device_cannot_give_is_said_and_another_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 40}
    loaded = load("llama", overrides={**few, "num_attention_heads": 2, "num_key_value_heads": 2})
    model = build(loaded, device="cpu", dtype=torch.float64)
    assert isinstance(model, PreTrainedModel)
    model.load_state_dict(random_state(model))
    ask, want = inputs(model), Observed()
    whole = type(model).forward

    @wraps(whole)
    def without_loss(self: PreTrainedModel, *args: object, labels: object = None, **given: object) -> object:
        if labels is not None:
            raise AttributeError("no lengths")
        return whole(self, *args, **given)

    monkeypatch.setattr(type(model), "forward", without_loss)
    observe(model, ask, into=want)
    assert isinstance(want.unasked[OWN_LOSS], AttributeError) and want.values["loss"].isfinite()
    with pytest.raises(AttributeError):  # a rank that raises where one device gave a loss
        observe(model, ask, into=Observed(), asked_of=replace(want, unasked={}))
    got = observe(model, ask, into=Observed(), asked_of=want)
    assert torch.equal(got.values["loss"], want.values["loss"])


def test_a_window_to_both_sides_stays_even() -> None:
    small = twin(load("longformer", overrides={"num_hidden_layers": 2}), tp=2)
    assert small.config.attention_window % 2 == 0


def test_an_argument_that_is_no_tensor_is_named() -> None:
    with pytest.raises(TraceError, match="asks for inference_session"):
        trace(build(load("sam2_video")))


def test_a_class_is_looked_for_in_every_modeling_file_of_the_folder() -> None:
    assert load("blip_text_model").model_class.__name__ == "BlipTextModel"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        pytest.param(
            "sam_mask_decoder",
            "SamMaskDecoderConfig describes a part .* give sam, which contains it",
            marks=wants_type("sam_mask_decoder"),
        ),
        ("bark", "BarkModel has no forward; give one of its parts: semantic"),
    ],
)
def test_a_part_names_what_contains_it(name: str, told: str) -> None:
    with pytest.raises(LoadError, match=told):
        load(name)


def test_a_default_config_gets_the_token_of_an_image() -> None:
    config = load("blip-2").config
    assert config.image_token_index == config.get_text_config().vocab_size - 1


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_a_twin_of_a_vision_language_model_runs_on_images(name: str) -> None:
    small = twin(load(name), tp=2)
    text = small.config.text_config
    assert sum(text.rope_parameters["mrope_section"]) == text.hidden_size // text.num_attention_heads // 2
    model = build(small, device="cpu", dtype=torch.float64)
    model.load_state_dict(random_state(model))
    given, refused = fullest_inputs(model, Sizes(2, 5, 5))
    assert refused is None
    assert "pixel_values" in given


def test_sections_of_a_default_config_fill_the_frequencies() -> None:
    assert sum(load("glm4v_text").config.rope_parameters["mrope_section"]) == 64


def test_sizes_that_a_forward_finds_unequal_are_made_equal_where_the_model_has_them_equal() -> None:
    real = load("qwen2_5_vl").config
    assert real.vision_config.out_hidden_size == real.text_config.hidden_size
    small = deepcopy(real)
    small.text_config.hidden_size, small.vision_config.out_hidden_size = 64, 48
    offered = list(agreeing(real, small, "expected 64, got 48"))
    assert any(one.vision_config.out_hidden_size == 64 and one.text_config.hidden_size == 64 for one in offered)


def test_a_width_that_was_given_stays() -> None:
    config = load("qwen2_5_vl", overrides={"vision_config.out_hidden_size": 48}).config
    assert config.vision_config.out_hidden_size == 48


def test_a_variance_is_positive() -> None:
    state = random_state(nn.BatchNorm2d(5000))
    assert state["running_var"].min() > 0


def test_tokens_of_dual_towers_lie_in_the_vocabulary() -> None:
    """The towers hide their tables from `get_input_embeddings`, and the table of positions may be larger."""
    model = build(load("altclip", overrides={"text_config.vocab_size": 300}))
    assert vocabulary(model) == 300


def test_an_outcome_has_its_reason() -> None:
    judged = Judged(0.5, {}, proof={"2": "proved"}, run={"2": "refuted"}, findings={"run 2": "TP203 wrong"})
    assert outcome(Row("a", "done", mine=judged)).kind is Outcome.WRONG
    assert outcome(Row("a", "done", mine=judged)).reason == "TP203 wrong"
    assert outcome(Row("a", "suggest", reason="no inputs")).kind is Outcome.NO_PLAN
    assert outcome(Row("a", "twin", reason="no twin", mine=Judged(0.5, {}, proof={"2": "proved"}))).reason == "no twin"
    row = Row("a", "done", inputs=("input_ids",), notes=("n",))
    assert row_of({"name": "a", "stage": "done", "inputs": ["input_ids"], "notes": ["n"]}) == row
