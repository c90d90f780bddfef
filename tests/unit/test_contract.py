"""The backend contract: every rule's examples, and planted faults at each level of nesting."""

from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import cast

import pytest
from transformers.processing_utils import ProcessorMixin

from shardproof import check
from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import load
from shardproof.verify.clients.contract.config import check_folder
from shardproof.verify.clients.contract.experiments.masks import _window
from shardproof.verify.clients.contract.processor import check_processor
from shardproof.verify.findings.catalogue import Example, rules
from tests.zoo import contract_model

HEAD = """from typing import Any
import functools
import torch
from torch import nn
from tests.zoo.contract_model import (
    ALL_ATTENTION_FUNCTIONS, Attention, Config, Head, Layer, Model, PreTrained, Processor, assemble,
)

"""
EXAMPLES = [
    pytest.param(rule.code, example, kind, id=f"{rule.code}-{kind}-{number}")
    for rule in rules().values()
    for kind, examples in (("invalid", rule.invalid), ("valid", rule.valid))
    for number, example in enumerate(examples)
    if example.code and rule.code.startswith("BE4") and rule.code < "BE45"
]


def checked(code: str, folder: Path, *, client: str = "vllm") -> tuple[Finding, ...]:
    """What `check` finds in the small model with some parts replaced."""
    file = folder / "contract_example.py"
    file.write_text(f"{HEAD}{code}\n\n\nContractForCausalLM = assemble(globals())\n")
    loaded = load(f"{file}:ContractForCausalLM")
    return check(loaded, Plan(), clients=(client,)).findings


def found(rule: str, example: Example, folder: Path) -> set[str]:
    if rule in ("BE421", "BE422"):
        (folder / "config.json").write_text(example.code)
        return {finding.code for finding in check_folder(folder)}
    if rule.startswith("BE44"):
        namespace = dict(vars(contract_model))
        exec(example.code, namespace)
        processor = namespace["Processor"]()
        assert isinstance(processor, ProcessorMixin)
        return {finding.code for finding in check_processor(processor)}
    client = "sglang" if "soft-cap" in example.note else "vllm"
    return {finding.code for finding in checked(example.code, folder, client=client)}


@pytest.mark.parametrize(("rule", "example", "kind"), EXAMPLES)
def test_examples_do_what_they_say(rule: str, example: Example, kind: str, tmp_path: Path) -> None:
    codes = found(rule, example, tmp_path)
    assert (rule in codes) == (kind == "invalid"), codes
    assert kind == "invalid" or not codes


FAULTS = {
    "no keywords in the model's signature": """
class Model(Model):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
        return (hidden,)
""",
    "a loop by index drops them": """
class Model(Model):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for index in range(len(self.layers)):
            hidden = self.layers[index](hidden)
        return (hidden,)
""",
    "a loop over pairs drops them": """
class Model(Model):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for index, (block, scale) in enumerate(zip(self.layers, [1.0, 1.0])):
            hidden = block(hidden) * scale
        return (hidden,)
""",
    "a helper method drops them": """
class Model(Model):
    def run(self, hidden, **kwargs):
        for layer in self.layers:
            hidden = layer(hidden)
        return (hidden,)

    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        return self.run(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds, **kwargs)
""",
    "a helper method is not given them": """
class Model(Model):
    def run(self, hidden, **kwargs):
        for layer in self.layers:
            hidden = layer(hidden, **kwargs)
        return (hidden,)

    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        return self.run(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
""",
    "a function that is given the layers drops them": """
def stack(blocks, hidden, options):
    for block in blocks:
        hidden = block(hidden)
    return hidden


class Model(Model):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        return (stack(self.layers, self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds, kwargs),)
""",
    "they are thrown away first": """
class Layer(Layer):
    def forward(self, hidden_states, **kwargs):
        kwargs = {}
        return hidden_states + self.self_attn(hidden_states, **kwargs)
""",
    "only some are passed": """
class Layer(Layer):
    def forward(self, hidden_states, **kwargs):
        return hidden_states + self.self_attn(hidden_states, position_ids=kwargs.get("position_ids"))
""",
    "an inherited forward drops them": """
class Old(Layer):
    def forward(self, hidden_states):
        return hidden_states + self.self_attn(hidden_states)


class Layer(Old):
    pass


class Model(Model):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
        return (hidden,)
""",
    "a decorator drops them": """
def timed(function):
    @functools.wraps(function)
    def inner(self, hidden_states, **kwargs):
        return function(self, hidden_states)

    return inner


class Layer(Layer):
    @timed
    def forward(self, hidden_states, **kwargs):
        return hidden_states + self.self_attn(hidden_states, **kwargs)
""",
    "a decorator without wraps drops them": """
def timed(function):
    def inner(self, hidden_states, **kwargs):
        return function(self, hidden_states)

    return inner


class Layer(Layer):
    @timed
    def forward(self, hidden_states, **kwargs):
        return hidden_states + self.self_attn(hidden_states, **kwargs)
""",
    "the attention does not give them to the interface": """
class Attention(Attention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        query, key, value = self.heads(hidden_states)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling)
        return self.o_proj(output.reshape(hidden_states.shape))
""",
}
RIGHT = {
    "renamed and merged": """
class Layer(Layer):
    def forward(self, hidden_states, **options):
        merged = {**options, "extra": None}
        merged.pop("extra")
        return hidden_states + self.self_attn(hidden_states, **merged)
""",
    "through a helper": """
class Model(Model):
    def run(self, hidden, **kwargs):
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden = layer(hidden, **kwargs)
        return (hidden,)

    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        return self.run(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds, **kwargs)
""",
    "through a decorator": """
def timed(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


class Layer(Layer):
    @timed
    def forward(self, hidden_states, **kwargs):
        return hidden_states + self.self_attn(hidden_states, **kwargs)
""",
    "by super": """
class Layer(Layer):
    def forward(self, hidden_states, **kwargs):
        return super().forward(hidden_states, **kwargs)
""",
}


@pytest.mark.parametrize("code", FAULTS.values(), ids=FAULTS)
def test_keywords_that_are_lost(code: str, tmp_path: Path) -> None:
    findings = [finding for finding in checked(code, tmp_path) if finding.code == "BE401"]
    assert findings
    source = findings[0].place.source
    assert source is not None
    assert source.file == "contract_example.py"
    assert "attention_instances" in findings[0].why


@pytest.mark.parametrize("code", RIGHT.values(), ids=RIGHT)
def test_keywords_that_arrive(code: str, tmp_path: Path) -> None:
    assert not checked(code, tmp_path)


@pytest.mark.parametrize("name", ["smollm3", "starcoder2", "gpt_neox"])
def test_no_finding_of_a_model_that_engines_serve(name: str) -> None:
    """Three of those that vLLM 0.32's own list gives to the Transformers backend; a benchmark has them all."""
    loaded = load(name, overrides={"num_hidden_layers": "2"})
    assert not check(loaded, clients=("transformers", "vllm", "sglang", "tgi")).findings


def test_an_unknown_client_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no client 'mlx'"):
        check("llama", clients=("mlx",))


PROCESSOR = """
from tests.zoo.contract_model import Processor


class Broken(Processor):
    extra = 1
"""


def test_the_processor_of_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counts are compared with what it emits, which no class tells."""
    model = tmp_path / "contract_example.py"
    model.write_text(f"{HEAD}\n\nContractForCausalLM = assemble(globals())\n")
    (tmp_path / "processor_config.json").write_text("{}")
    loaded = replace(load(f"{model}:ContractForCausalLM"), checkpoint=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    namespace: dict[str, object] = {}
    exec(PROCESSOR, namespace)
    kind = namespace["Broken"]
    assert isinstance(kind, type)
    monkeypatch.setattr(
        "shardproof.verify.clients.contract.processor.AutoProcessor.from_pretrained", lambda *_, **__: kind()
    )
    assert "BE442" in {finding.code for finding in check(loaded, Plan(), clients=("vllm",)).findings}


@pytest.mark.parametrize(
    ("function", "given", "window"),
    [
        ("create_causal_mask", {}, 0),
        ("create_sliding_window_causal_mask", {"config": SimpleNamespace(sliding_window=12)}, 12),
        ("create_sliding_window_causal_mask", {"settings": SimpleNamespace(sliding_window=12)}, None),
        ("create_sliding_window_causal_mask", {"config": SimpleNamespace()}, None),
        ("create_chunked_causal_mask", {"config": SimpleNamespace(attention_chunk_size=8)}, None),
    ],
)
def test_a_window_that_cannot_be_read_is_not_known(function: str, given: dict[str, object], window: int | None) -> None:
    frame = SimpleNamespace(f_code=SimpleNamespace(co_name=function), f_locals=given)
    assert _window(cast(FrameType, frame)) == window
