"""References: what each form loads, and the one sentence that each wrong one gets."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from shardproof.planner.ir.errors import LoadError
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from tests.gate import PATH

CUSTOM = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OddConfig(PreTrainedConfig):
    model_type = "odd"

    def __init__(self, width=8, **kwargs):
        self.width = width
        super().__init__(**kwargs)


class OddModel(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.mix = nn.Linear(config.width, config.width)
        self.post_init()

    def forward(self, inputs_embeds):
        return BaseModelOutput(last_hidden_state=self.mix(inputs_embeds))


class Bare(PreTrainedModel):
    pass


class NotAModel(nn.Module):
    pass
"""


def refused(reference: str, *, overrides: dict[str, str] | None = None, trust_remote_code: bool = False) -> str:
    with pytest.raises(LoadError) as raised:
        load(reference, overrides=overrides, trust_remote_code=trust_remote_code)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a small Llama's config.json."""
    LlamaConfig(hidden_size=32, num_hidden_layers=2, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    """A folder with custom code beside its config.json."""
    (tmp_path / "modeling_odd.py").write_text(CUSTOM)
    auto_map = {"AutoConfig": "modeling_odd.OddConfig", "AutoModel": "modeling_odd.OddModel"}
    config = {"model_type": "odd", "width": 16, "architectures": ["OddModel"], "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "class_name"),
    [
        ("llama", "LlamaForCausalLM"),
        ("gpt_neox", "GPTNeoXForCausalLM"),
        ("clip_text_model", "CLIPTextModel"),
        ("transformers.models.qwen2.modeling_qwen2:Qwen2Model", "Qwen2Model"),
    ],
)
def test_a_name_loads(reference: str, class_name: str) -> None:
    loaded = load(reference)
    assert (loaded.name, loaded.model_class.__name__, loaded.checkpoint) == (reference, class_name, None)


def test_a_config_file_and_its_folder_load_alike(written: Path) -> None:
    by_file, by_folder = load(str(written / "config.json")), load(str(written))
    assert by_file.config.to_dict() == by_folder.config.to_dict()
    assert by_file.config.hidden_size == 32
    assert (by_file.checkpoint, by_folder.checkpoint) == (None, written)
    assert by_folder.title == written.name


def test_a_hub_id_loads_from_the_local_cache(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "cache" / "models--somebody--small"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (written / "config.json").rename(snapshot / "config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    loaded = load("somebody/small")
    assert (loaded.config.hidden_size, loaded.checkpoint) == (32, snapshot)


def test_a_class_of_a_file_loads_and_builds(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text("WIDTH = 12\n")
    code = CUSTOM.replace("import torch\n", "import torch\nfrom .sizes import WIDTH\n", 1).replace(
        "width=8", "width=WIDTH"
    )
    (tmp_path / "odd.py").write_text(code)
    model = build(load(f"{tmp_path}/odd.py:OddModel"))
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(12, 12), (12,)]


def test_a_bare_name_is_a_type_before_it_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    assert load("llama").config.hidden_size == 4096
    assert "holds no config.json" in refused("./llama")
    LlamaConfig(hidden_size=64).save_pretrained(tmp_path / "llama")
    assert load("llama").config.hidden_size == 64


def test_what_loads_can_be_loaded_again_elsewhere(written: Path) -> None:
    first = load(str(written), overrides={"num_hidden_layers": "1", "rope_parameters.rope_theta": "5.5"})
    again = load(first.name, overrides=dict(first.overrides), trust_remote_code=first.trust_remote_code)
    assert again.config.to_dict() == first.config.to_dict()
    assert again.config.num_hidden_layers == 1
    assert again.config.rope_parameters["rope_theta"] == 5.5


def test_overrides_reach_sub_configs_and_what_is_derived() -> None:
    assert load("gemma3", overrides={"text_config.num_hidden_layers": "3"}).config.text_config.num_hidden_layers == 3
    config = load("gemma2", overrides={"num_hidden_layers": "3", "hidden_activation": "gelu"}).config
    assert (len(config.layer_types), config.hidden_activation) == (3, "gelu")


def test_fewer_layers_keep_the_first_written_kinds(tmp_path: Path) -> None:
    full = load("gemma2").config
    full.save_pretrained(tmp_path)
    assert load(str(tmp_path), overrides={"num_hidden_layers": "3"}).config.layer_types == full.layer_types[:3]


def test_custom_code_runs_only_when_trusted(custom: Path) -> None:
    assert refused(str(custom)) == (
        f"{custom}: this model needs its own code, which would run modeling_odd.py; "
        "read it, then give --trust-remote-code to run it."
    )
    loaded = load(str(custom), trust_remote_code=True, overrides={"width": "24"})
    assert (loaded.model_class.__name__, loaded.config.width) == ("OddModel", 24)
    assert "names no field of OddConfig. Did you mean width?" in refused(
        str(custom), trust_remote_code=True, overrides={"widht": "24"}
    )


def test_custom_code_that_is_missing_or_broken(custom: Path) -> None:
    (custom / "modeling_odd.py").write_text("1 / 0\n")
    assert "modeling_odd.py raised ZeroDivisionError: division by zero" in refused(str(custom), trust_remote_code=True)
    (custom / "modeling_odd.py").write_text("")
    assert "modeling_odd.py has no such class" in refused(str(custom), trust_remote_code=True)
    (custom / "modeling_odd.py").write_text("from .gone import thing\n")
    assert "modeling_odd.py imports gone.py, which is not there" in refused(str(custom), trust_remote_code=True)
    (custom / "modeling_odd.py").unlink()
    assert "modeling_odd.py is not there" in refused(str(custom), trust_remote_code=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama",}', "this is not valid JSON (Illegal trailing comma"),
        ('{"model_type":\n  llama}', "at line 2, column 3); correct it there."),
        ("[1]", "a config.json holds one JSON object, not a list."),
        ("{}", 'its config.json has no "model_type"; add one, such as "llama".'),
        ('{"model_type": "lama"}', "has no model type 'lama'. Did you mean llama"),
        (
            '{"model_type": "llama", "hidden_size": 7}',
            "LlamaConfig refuses its fields (ValueError: The hidden size",
        ),
        ('{"model_type": "llama", "vocab_size": "x"}', "Field 'vocab_size' expected int, got str (value: 'x')"),
        ('{"auto_map": {"AutoConfig": "a.B"}}', "its auto_map names no model; add AutoModelForCausalLM or AutoModel."),
    ],
)
def test_a_wrong_config_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    if "trailing comma" in message:
        message = "this is not valid JSON ("  # the wording is Python's, and changed in 3.13
    assert message in refused(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("lama", "has this name. Did you mean llama"),
        ("clip_text", "has this name. Did you mean clip_text_model"),
        ("layoutxlm", "the auto classes know no LayoutXLMConfig; give package.module:Class."),
        ("transformers:LlamaForCasualLM", "there is no class LlamaForCasualLM. Did you mean LlamaForCausalLM"),
        ("some/model", "To use a Hub model, first run: hf download some/model"),
        ("/nowhere/at/all", "/nowhere/at/all: there is no such file or folder; give a Transformers model type"),
        ("nowhere.json", "nowhere.json: there is no such file; give the path of a model's config.json."),
        ("nowhere.py:Model", "nowhere.py: there is no such file; give the path of a Python file"),
        ("nowhere.module:Model", "nowhere.module: there is no such module (no 'nowhere'); install it"),
        ("transformers.models.llama.modeling_llama:LlamaMod", "there is no class LlamaMod. Did you mean LlamaModel"),
        ("transformers:LlamaConfig", "LlamaConfig is a config class; name the model class that is built from it."),
        ("", "The reference is empty; give a Transformers model type"),
    ],
)
def test_a_wrong_reference(reference: str, message: str) -> None:
    assert message in refused(reference)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert f"{tmp_path}: this folder holds no config.json" in refused(str(tmp_path))


def test_a_wrong_file_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(CUSTOM)
    assert "say which class, as in odd.py:Class; the classes of this file are: OddConfig, OddModel" in refused(
        str(file)
    )
    assert "there is no class OddMdel. Did you mean OddModel" in refused(f"{file}:OddMdel")
    assert "Bare has no config_class" in refused(f"{file}:Bare")
    file.write_text("x = 1\nraise RuntimeError('not today')\n")
    assert "raised RuntimeError: not today on line 2 when it was imported" in refused(f"{file}:OddModel")
    file.write_text("def f(:\n")
    assert "raised SyntaxError" in refused(f"{file}:OddModel")
    file.write_text("import nothing_like_this\n")
    assert "raised ModuleNotFoundError: No module named 'nothing_like_this' on line 1" in refused(f"{file}:OddModel")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hiden_size": "8"}, "--set hiden_size names no field of LlamaConfig. Did you mean hidden_size"),
        ({"hidden_size": "wide"}, "Field 'hidden_size' expected int, got str (value: 'wide')"),
        ({"hidden_size.x": "1"}, "goes into 'hidden_size', which is no sub-config and no mapping of LlamaConfig"),
    ],
)
def test_a_wrong_override(overrides: dict[str, str], message: str) -> None:
    assert message in refused("llama", overrides=overrides)


def test_a_model_that_does_not_build(written: Path) -> None:
    loaded = load(str(written), overrides={"hidden_act": "nothing"})
    with pytest.raises(LoadError, match="LlamaForCausalLM does not build from this config"):
        build(loaded)


def test_a_config_field_that_building_deletes_is_there_the_next_time(custom: Path) -> None:
    text = (custom / "modeling_odd.py").read_text()
    text = text.replace(
        "super().__init__(config)", "super().__init__(config)\n        config.gone\n        del config.gone"
    )
    (custom / "modeling_odd.py").write_text(text)
    config = json.loads((custom / "config.json").read_text())
    (custom / "config.json").write_text(json.dumps(config | {"gone": 1}))
    loaded = load(str(custom), trust_remote_code=True)
    assert build(loaded) is not build(loaded)
    (custom / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"no attribute 'gone' at modeling_odd.py:\d+\)"):
        build(load(str(custom), trust_remote_code=True))


def test_a_model_builds_on_meta_in_eval_mode() -> None:
    model = build(load("llama", overrides={"num_hidden_layers": "1"}), dtype=torch.float64)
    assert not model.training
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}


def carried(reference: str, **overrides: str) -> tuple[LoadedModel, dict[str, object]]:
    loaded = load(reference, overrides=overrides)
    return loaded, carried_plan(loaded, build(loaded)).to_json()


def test_the_plan_that_a_head_model_carries() -> None:
    loaded, plan = carried("llama", num_hidden_layers="1")
    assert plan["base_model_tp_plan"] == loaded.config.base_model_tp_plan
    assert plan["tp_plan"] == {"lm_head": "colwise_gather_output"}
    assert plan["base_model_pp_plan"] == {
        key: [list(names) for names in value] for key, value in (loaded.config.base_model_pp_plan or {}).items()
    }


def test_a_model_made_of_models_carries_their_plans_under_their_names() -> None:
    loaded = load("gemma3", overrides={"text_config.num_hidden_layers": "1", "vision_config.num_hidden_layers": "1"})
    model = build(loaded)
    keys = {entry.pattern for entry in carried_plan(loaded, model).tp}
    assert "language_model.layers.*.self_attn.q_proj" in keys
    assert base_prefix(model) == "model"


def test_a_model_without_a_plan_carries_none() -> None:
    _, plan = carried("opt", num_hidden_layers="1")
    assert (plan["base_model_tp_plan"], plan["base_model_pp_plan"]) == ({}, {})


def test_a_file_called_like_a_type_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").write_text("not JSON")
    assert load("llama").config.model_type == "llama"
    assert "this is not valid JSON" in refused(str(tmp_path / "llama"))


def test_a_model_of_a_file_pickles_to_a_process_that_never_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_config.py").write_text(CUSTOM.split("class OddModel")[0])
    (tmp_path / "odd.py").write_text(
        "from .odd_config import OddConfig\n" + CUSTOM.replace("class OddConfig", "class Unused")
    )
    loaded = load(f"{tmp_path}/odd.py:OddModel", overrides={"width": "20"})
    loaded.config.width = 28
    (tmp_path / "pickled").write_bytes(pickle.dumps(loaded))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).config.width)"
    monkeypatch.setenv("PYTHONPATH", PATH)
    run = [sys.executable, "-c", code, str(tmp_path / "pickled")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "28\n"


def test_a_package_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_package").mkdir()
    (tmp_path / "odd_package" / "modeling.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    assert load("odd_package.modeling:OddModel").model_class.__name__ == "OddModel"


def test_tied_weights_in_a_list_are_named(custom: Path) -> None:
    text = (custom / "modeling_odd.py").read_text()
    text = text.replace(
        "config_class = OddConfig", "config_class = OddConfig\n    _tied_weights_keys = ['mix.weight']", 1
    )
    (custom / "modeling_odd.py").write_text(text)
    config = json.loads((custom / "config.json").read_text())
    (custom / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(LoadError, match="_tied_weights_keys is a list; Transformers 5 wants a dictionary"):
        build(load(str(custom), trust_remote_code=True))


def test_a_field_that_only_the_modeling_code_reads_can_be_set() -> None:
    assert load("qwen3_moe", overrides={"head_dim": 128}).config.head_dim == 128
    with pytest.raises(LoadError, match="--set head_dims names no field of Qwen3MoeConfig"):
        load("qwen3_moe", overrides={"head_dims": 128})
