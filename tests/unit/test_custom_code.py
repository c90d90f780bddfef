"""Code that lies with a checkpoint: what the refusal names, what is said of a failure, and what Transformers 5 took from it."""

import json
from pathlib import Path

import pytest

from shardproof.launch.authoring.ported_code import ported
from shardproof.launch.cli import run
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.loading.build import build
from shardproof.planner.loading.custom_code import code_file, references_of
from shardproof.planner.loading.load import load
from shardproof.planner.loading.version_breaks import BREAKS
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace

CODE = """import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
# IMPORTS


class OddConfig(PreTrainedConfig):
    model_type = "odd"


class OddModel(PreTrainedModel):
    config_class = OddConfig
    # CLASS

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(8, 16)
        self.head = nn.Linear(16, 8, bias=False)
        # BUILD
        self.post_init()

    def get_input_embeddings(self):
        return self.table

    # METHODS

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        x = self.table(input_ids)
        # FORWARD
        return (self.head(x),)
"""


def folder(tmp_path: Path, auto_map: object = None, **at: str) -> Path:
    """A checkpoint with the model, in which each marker is replaced by a line of code."""
    text = CODE
    for marker, line in at.items():
        text = text.replace(f"# {marker}", line)
    (tmp_path / "modeling_odd.py").write_text(text)
    named = {"AutoConfig": "modeling_odd.OddConfig", "AutoModel": "modeling_odd.OddModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": auto_map or named}))
    return tmp_path


def refused(place: Path, *, trusted: bool = False) -> str:
    with pytest.raises(LoadError) as found:
        load(str(place), trust_remote_code=trusted)
    return str(found.value).removeprefix(f"{place}: ")


@pytest.mark.parametrize(
    ("auto_map", "files"),
    [
        ({"AutoConfig": "a.C", "AutoModel": "b.M"}, "a.py and b.py"),
        ({"AutoConfig": "a.C", "AutoModel": "a.M"}, "a.py"),
        ({"AutoModelForCausalLM": ["slow.M", "fast.M"]}, "slow.py"),
        ({"AutoModelForCausalLM": [None, "fast.M"], "AutoConfig": ["c.C"]}, "c.py and fast.py"),
        ({"AutoModel": "org/repo--b.M"}, "b.py of org/repo"),
        ({"AutoModel": "org/repo--b.M", "AutoConfig": "a.C"}, "a.py and b.py of org/repo"),
        ({"AutoModelForSequenceClassification": "c.M"}, "c.py"),
    ],
)
def test_the_refusal_names_the_files_of_every_form(auto_map: object, files: str, tmp_path: Path) -> None:
    assert refused(folder(tmp_path, auto_map)) == (
        f"this model needs its own code, which would run {files}; read it, then give --trust-remote-code to run it."
    )


@pytest.mark.parametrize("auto_map", [{"AutoModel": 3}, {"AutoModel": []}, {"AutoModel": [None, 3]}, {"AutoModel": ""}])
def test_an_auto_map_without_a_model(auto_map: object, tmp_path: Path) -> None:
    assert "its auto_map names no model" in refused(folder(tmp_path, auto_map))


@pytest.mark.parametrize("name", ["OddModel", "a.b.OddModel"])
def test_a_name_of_another_form(name: str, tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "modeling_odd.OddConfig", "AutoModel": name}
    assert "which is not of the form file.Class" in refused(folder(tmp_path, auto_map), trusted=True)


def test_a_name_is_one_line() -> None:
    assert code_file("a\n\x1b[2Jb.C") == "a \\u001b[2Jb.py"
    assert references_of({"a": 1}) == ()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('raise OSError("no accelerator found")', "modeling_odd.py raised OSError: no accelerator found on line 5"),
        (
            'open("table.bin")',
            "modeling_odd.py raised FileNotFoundError: [Errno 2] No such file or directory: 'table.bin'",
        ),
        ("torch.no_such_thing", "raised AttributeError: module 'torch' has no attribute 'no_such_thing' on line 5"),
        ("from .gone import x", "modeling_odd.py imports gone.py, which is not there; put it beside config.json"),
        ("if", "modeling_odd.py raised SyntaxError"),
        ("raise SystemExit(1)", "modeling_odd.py raised SystemExit: 1 on line 5"),
    ],
)
def test_a_file_that_fails_is_not_told_to_be_missing(line: str, told: str, tmp_path: Path) -> None:
    found = refused(folder(tmp_path, IMPORTS=line), trusted=True)
    assert told in found
    assert ("not there" in found) == ("gone" in line)
    assert "no such class" not in found


TAKEN: dict[str, tuple[dict[str, str], str]] = {
    "rope": (
        {"CLASS": "width = 4", "BUILD": 'config.rope_scaling = {"rope_type": "x"}; kind = config.rope_scaling["type"]'},
        "config.rope_parameters",
    ),
    "tied": ({"CLASS": '_tied_weights_keys = ["head.weight"]'}, "a dictionary from each tied name to its source"),
    "fx": (
        {"IMPORTS": "from transformers.utils.import_utils import is_torch_fx_available"},
        "no is_torch_fx_available",
    ),
    "masks": ({"FORWARD": "self.get_head_mask(None, 2)"}, "no head masks"),
    "tie": ({"METHODS": "def tie_weights(self):\n        pass"}, "take the class's own tie_weights away"),
    "recorder": (
        {"IMPORTS": "from transformers.utils.generic import OutputRecorder"},
        "from transformers.utils.output_capturing import OutputRecorder",
    ),
    "mask": (
        {"FORWARD": "create_causal_mask(self.config, input_embeds=x, attention_mask=None, past_key_values=None)"},
        "names the argument inputs_embeds",
    ),
    "generation": ({"BUILD": "config.max_length"}, "read it from self.generation_config"),
    "legacy": ({"FORWARD": "DynamicCache.from_legacy_cache(None)"}, "no tuples of keys and values"),
    "usable": ({"FORWARD": "DynamicCache().get_usable_length(3)"}, "get_seq_length(layer_idx)"),
    "post_init": (
        {"FORWARD": "del self.all_tied_weights_keys; self.all_tied_weights_keys"},
        "end the class's __init__",
    ),
    "flash": ({"IMPORTS": "import flash_attn"}, "the import away, and call ALL_ATTENTION_FUNCTIONS"),
}


def test_every_row_is_raised_here() -> None:
    assert len(TAKEN) == len(BREAKS)
    assert all(any(told in row.edit for row in BREAKS) for _, told in TAKEN.values())


@pytest.mark.parametrize("name", TAKEN)
def test_what_transformers_5_took_is_answered_with_the_edit(name: str, tmp_path: Path) -> None:
    lines, told = TAKEN[name]
    place = folder(tmp_path, **lines)
    if name == "tied":
        fields = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    with pytest.raises((LoadError, TraceError)) as found:
        trace(build(load(str(place), trust_remote_code=True)))
    assert told in str(found.value)


BY_HAND = ("generation", "post_init")
"""Rows whose cases here are no habit of published code: what stands there is not known to be what the edit is for."""


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in BY_HAND])
def test_an_edit_that_needs_no_judgement_mends_the_file(name: str, tmp_path: Path) -> None:
    lines, _ = TAKEN[name]
    place = folder(tmp_path, **lines)
    if name == "tied":
        fields = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    if name == "legacy":
        fields = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 2}))
    file = place / "modeling_odd.py"
    made = ported(file.read_text())
    assert made.edits
    file.write_text(made.text)
    assert trace(build(load(str(place), trust_remote_code=True))).ops
    assert ported(made.text).edits == ()


OLD = """import torch
from flash_attn import flash_attn_func, flash_attn_varlen_func as varlen
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import is_torch_fx_available, logging

if is_torch_fx_available():
    wrapped = torch.fx.wrap(len)
else:
    wrapped = len


class Rotary:
    def __init__(self, config):
        if config.rope_scaling is not None:
            self.kind = config.rope_scaling["type"]


class OldModel(OldPreTrainedModel):
    _tied_weights_keys = ["lm_head.weight", "other.weight"]

    def __init__(self, config):
        super().__init__(config)
        self.model = config

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def tie_weights(self):
        super().tie_weights()

    def forward(self, ids, past_key_values=None, return_dict=None, head_mask=None):
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        head_mask = self.get_head_mask(head_mask, self.config.num_hidden_layers)
        use_legacy_cache = not isinstance(past_key_values, Cache)
        if use_legacy_cache:
            past_key_values = DynamicCache.from_legacy_cache(past_key_values)
        past = past_key_values.get_usable_length(ids.shape[1], 0)
        mask = create_causal_mask(config=self.config, input_embeds=ids, cache_position=past, past_key_values=None)
        return past_key_values.to_legacy_cache() if use_legacy_cache else past_key_values, self.config.max_length
"""
NEW = """import torch
try:
    from flash_attn import flash_attn_func, flash_attn_varlen_func as varlen
except ImportError:
    flash_attn_func = None
    varlen = None
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import logging
wrapped = len


class Rotary:
    def __init__(self, config):
        if config.rope_parameters["rope_type"] != "default":
            self.kind = config.rope_parameters["rope_type"]


class OldModel(OldPreTrainedModel):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight", "other.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = config
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def tie_weights(self, **kwargs):
        super().tie_weights(**kwargs)

    def forward(self, ids, past_key_values=None, return_dict=None, head_mask=None):
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        head_mask = [None] * self.config.num_hidden_layers
        use_legacy_cache = not isinstance(past_key_values, Cache)
        if use_legacy_cache:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length(0)
        mask = create_causal_mask(config=self.config, inputs_embeds=ids, past_key_values=None)
        return past_key_values if use_legacy_cache else past_key_values, self.generation_config.max_length
"""


def test_habits_of_version_4_are_ported() -> None:
    assert ported(OLD).text == NEW


def test_a_name_that_moved_is_imported_on_a_line_of_its_own() -> None:
    old = "from transformers.utils.generic import OutputRecorder, other\n"
    new = (
        "from transformers.utils.generic import other\nfrom transformers.utils.output_capturing import OutputRecorder\n"
    )
    assert ported(old).text == new


def test_a_constructor_of_one_line_gets_a_body() -> None:
    old = "class A(BPreTrainedModel):\n    def __init__(self, c): super().__init__(c)\n"
    body = "        super().__init__(c)\n        self.post_init()\n"
    assert ported(old).text == f"class A(BPreTrainedModel):\n    def __init__(self, c):\n{body}"


@pytest.mark.parametrize("text", ["x = " + "(" * 300 + ")" * 300, "if", "x = '\0'"])
def test_what_is_no_code_is_a_syntax_error(text: str) -> None:
    with pytest.raises((SyntaxError, ValueError)):
        ported(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def f(self):\n    return self.get_head_mask(None, self.n + 1)\n", "    return [None] * (self.n + 1)\n"),
        ("ready = is_torch_fx_available() and fast\n", "ready = False and fast\n"),
        (
            "class A:\n    def tie_weights(self):\n        self.inner.tie_weights()\n",
            "        self.inner.tie_weights()\n",
        ),
        (
            "class A:\n    def tie_weights(self, **more):\n        super().tie_weights()\n",
            "    def tie_weights(self, **more):\n        super().tie_weights()\n",
        ),
        (
            "class C:\n    def __init__(self):\n        if self.rope_scaling is None:\n            return\n",
            "        if self.rope_scaling is None:\n            return\n",
        ),
        (
            "def f(past):\n    return DynamicCache.from_legacy_cache(past)\n",
            "    return DynamicCache.from_legacy_cache(past)\n",
        ),
    ],
)
def test_an_edit_leaves_code_that_runs(old: str, new: str) -> None:
    assert ported(old).text.endswith(new)


def test_what_no_edit_fits_is_left() -> None:
    left = """import flash_attn_3
class Plain:
    _tied_weights_keys = ["a"]
    def __init__(self):
        self.max_length = self.config.max_length
        if self.scaling is None:
            get_head_mask(1, 2)
"""
    assert ported(left).text == left


def test_the_command_shows_a_diff_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.py"
    file.write_text(OLD)
    assert run(["port", str(file)]) == 0
    assert "+        self.post_init()" in capsys.readouterr().out
    assert file.read_text() == OLD
    assert run(["port", str(file), "--write"]) == 0
    assert file.read_text() == NEW
    assert run(["undo", str(file)]) == 0
    assert file.read_text() == OLD
    capsys.readouterr()
    file.write_text("if")
    assert run(["port", str(file)]) == 2
    assert "is no Python code: line 1" in capsys.readouterr().err


def test_an_error_of_another_kind_gets_no_advice(tmp_path: Path) -> None:
    place = folder(tmp_path, BUILD='{}["type"]')
    with pytest.raises(LoadError) as found:
        build(load(str(place), trust_remote_code=True))
    assert str(found.value).endswith(").")
