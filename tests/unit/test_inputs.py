"""What a model is traced on: every part of it takes part, where the signature and the config tell how."""

import pytest

from planner.frontend.load import build, load
from planner.frontend.trace import trace


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
