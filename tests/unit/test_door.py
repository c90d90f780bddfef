"""What comes in from outside: a wrong config, plan, override or reference is one sentence and exit 2, never a bug."""

import json
import os
from pathlib import Path

import pytest

from shardproof.launch.cli import run
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.loading.load import load

Captured = pytest.CaptureFixture[str]

FIELDS = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 128,
}
TEXT = json.dumps(FIELDS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (TEXT.replace('layers": 2', 'layers": -3'), "num_hidden_layers is -3, and a model needs at least 1"),
        (TEXT.replace('layers": 2', 'layers": 0'), "num_hidden_layers is 0, and a model needs at least 1"),
        (TEXT.replace('vocab_size": 128', 'vocab_size": -5'), "vocab_size is -5, and a model needs at least 1"),
        (TEXT.replace('intermediate_size": 128', 'intermediate_size": -1'), "intermediate_size is -1"),
        (TEXT[:-1] + ', "rms_norm_eps": NaN}', "rms_norm_eps is NaN, which is no number"),
        (TEXT[:-1] + ', "hidden_size": 32}', "says 'hidden_size' twice"),
        (TEXT[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deep"),
        (TEXT.replace("128", "1" + "0" * 5000), "holds a number that cannot be read"),
        (TEXT[:-1] + ', "architectures": 5}', "architectures is 5, and not a list of class names"),
        (TEXT[:-1] + ', "architectures": [null]}', "and not a list of class names"),
        (TEXT[:-1] + ', "auto_map": -1}', "auto_map is -1, and no object of class names"),
        (
            TEXT[:-1] + ', "architectures": ["LlamaPreTrainedModel"]}',
            "names LlamaPreTrainedModel, which has no forward",
        ),
        (TEXT[:-1] + ', "architectures": ["PreTrainedModel"]}', "names PreTrainedModel, which has no forward"),
        (TEXT.replace('"llama"', "[]"), "model_type"),
        (TEXT.replace('"llama"', "5"), "model_type"),
    ],
)
def test_a_config_that_no_model_has(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(LoadError) as raised:
        load(str(tmp_path))
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    "reference", ["a" * 5000, "/" + "a/" * 3000, "a\0b", "", " ", "/dev/zero", "~", "file://x", "a:b:c"]
)
def test_a_reference_that_names_nothing(reference: str) -> None:
    with pytest.raises(LoadError):
        load(reference)


def test_a_file_that_never_ends_is_not_read(tmp_path: Path, capsys: Captured) -> None:
    pipe = tmp_path / "plan.json"
    os.mkfifo(pipe)
    for path in ("/dev/zero", str(pipe)):
        assert run(["verify", "llama", "--plan", path, "-q"]) == 2
        assert "is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"base_model_tp_plan": {"layers.*.mlp.up_proj": 3}}, "must be a style string"),
        ({"base_model_pp_plan": {"layers": 5}}, "must be [[input names], [output names]]"),
    ],
)
def test_a_plan_of_a_wrong_form_in_a_config(
    fields: dict[str, object], sentence: str, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**FIELDS, **fields}))
    assert run(["verify", str(tmp_path), "--level", "proof", "-q"]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "bug" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("value", ["-3", "0", "[1]", "two", "NaN", "[" * 100_000])
def test_an_override_that_no_model_has(value: str, capsys: Captured) -> None:
    assert run(["verify", "llama", "--set", f"num_hidden_layers={value}", "--level", "proof", "-q"]) == 2
    assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("check", "~" + "a" * 5000), ("verify", "llama", "--adapter", "a" * 5000)])
def test_a_path_that_is_longer_than_any(arguments: tuple[str, ...], capsys: Captured) -> None:
    assert run([*arguments, "-q"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
