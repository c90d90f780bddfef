"""The printed plan is loadable as it is: put into copies of the classes that it names, Transformers composes the same plan."""

import re
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import load
from shardproof.verify.report.formats.python import suggestion_python
from shardproof.verify.report.report import Report
from shardproof.verify.report.suggestion import Suggested

SMALL = {"num_hidden_layers": "2"}


@pytest.mark.parametrize(
    ("reference", "overrides", "classes"),
    [
        ("llama", SMALL, ["LlamaConfig", "LlamaForCausalLM"]),
        ("mixtral", SMALL, ["MixtralConfig", "MixtralForCausalLM"]),
        ("gemma3", {"text_config.num_hidden_layers": "2", "vision_config.num_hidden_layers": "2"}, None),
        ("tests.zoo.odd_models:OddPlain", {}, ["OddConfig", "OddPlain"]),
        ("tests.zoo.odd_models:OddBare", {}, ["OddConfig", "OddBare"]),
    ],
)
def test_what_is_printed_is_what_is_loaded(
    reference: str, overrides: dict[str, str], classes: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(reference, overrides=overrides)
    found = suggest(loaded)
    shown = Suggested(
        model=reference,
        config_class=type(loaded.config).__name__,
        model_class=loaded.model_class.__name__,
        plan=found.plan,
        degrees=Degrees(found.degrees, {}),
        sharded_fraction=found.sharded_fraction,
        tp=2,
        report=Report(reference, ()),
        owners=found.owners,
    )
    built = build(loaded)
    kinds: dict[str, type] = {type(part.config).__name__: type(part.config) for part in _models(built)}
    kinds[loaded.model_class.__name__] = loaded.model_class
    sections = _sections(suggestion_python(shown))
    assert classes is None or set(sections) <= set(classes)
    for kind in kinds.values():
        for attribute in ("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "_tp_plan", "_pp_plan"):
            if getattr(kind, attribute, None):
                monkeypatch.setattr(kind, attribute, None)
    for name, attributes in sections.items():
        for attribute, value in attributes.items():
            monkeypatch.setattr(kinds[name], attribute, value, raising=False)
    with torch.device("meta"):
        carrying = loaded.model_class(type(loaded.config).from_dict(loaded.config.to_dict()))
    prefix = base_prefix(carrying)
    assert found.plan.styles(prefix).items() <= carrying.tp_plan.items()
    unasked = set(carrying.tp_plan) - set(found.plan.styles(prefix))
    assert all(key.endswith("embed_tokens") for key in unasked)
    assert set(carrying.ep_plan) == {f"{prefix}.{entry.pattern}" for entry in found.plan.ep}
    names = {generic(name) for name, _ in carrying.named_modules()} | {
        generic(n) for n, _ in carrying.named_parameters()
    }
    assert set(carrying.tp_plan) <= names


def _models(model: torch.nn.Module) -> list[PreTrainedModel]:
    return [part for part in model.modules() if isinstance(part, PreTrainedModel)]


def _sections(text: str) -> dict[str, dict[str, object]]:
    """The assignments of every printed class."""
    found: dict[str, dict[str, object]] = {}
    for name, body in re.findall(r"^# In class (\w+):\n(.*?)(?=^# In class |\Z)", text, re.MULTILINE | re.DOTALL):
        scope: dict[str, object] = {}
        exec(compile(body, name, "exec"), {}, scope)
        found[name] = scope
    return found


def test_a_part_with_a_config_of_its_own_gets_its_own_entries() -> None:
    loaded = load("gemma3", overrides={"text_config.num_hidden_layers": "2", "vision_config.num_hidden_layers": "2"})
    found = suggest(loaded)
    assert found.owners["language_model"] == "Gemma3TextConfig"
    shown = Suggested("gemma3", "Gemma3Config", "-", found.plan, Degrees((1,), {}), 1.0, 2, Report("gemma3", ()))
    sections = _sections(suggestion_python(replace(shown, owners=found.owners)))
    text = sections["Gemma3TextConfig"]["base_model_tp_plan"]
    assert isinstance(text, dict)
    assert text["layers.*.self_attn.q_proj"] == "colwise"
