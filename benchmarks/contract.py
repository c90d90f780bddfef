# ruff: noqa: E501  # edits are one line each
"""Faults of the backend contract planted in right models, one at a time: how many `plan check` finds, and by which rule.

The models have structures and names of their own (`benchmarks/engines/models`); each fault is an edit of their source, at each
level of nesting where it can stand. A model as it is must have no finding.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.families import CUSTOM, ROOT
from shardproof import check
from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import load

CLIENTS = ("transformers", "vllm", "sglang")
MODELS = ("ladder", "quill")


@dataclass(frozen=True, slots=True)
class Planted:
    """A fault by name, the codes that may say it, and the source that has it."""

    name: str
    codes: frozenset[str]
    source: str


def faults(source: str) -> Iterator[Planted]:
    """Every fault that can be planted in a source."""
    forwards = re.finditer(r"    def forward\(.*?(?=\n    def |\n\n\n|\Z)", source, re.DOTALL)
    for number, found in enumerate(found for found in forwards if "**kwargs: object" in found[0]):
        without = re.sub(r"(, )?\*\*kwargs: object,?", "", found[0])
        without = re.sub(r"\n +\n", "\n", re.sub(r", \*\*kwargs", "", without))
        yield _planted(f"no keywords in forward {number}", "BE401 TP210", _cut(source, found, without))
    for number, found in enumerate(re.finditer(r", \*\*kwargs\)", source)):
        line = source[source.rfind("\n", 0, found.start()) : found.end()]
        if "def " not in line and "found = self." not in line:
            yield _planted(f"keywords not passed at call {number}", "BE401", _cut(source, found, ")"))
    for name, codes, old, new in EDITS:
        changed = re.sub(old, new, source, count=1)
        if changed != source:
            yield _planted(name, codes, changed)


def _planted(name: str, codes: str, source: str) -> Planted:
    return Planted(name, frozenset(codes.split()), source)


def _cut(source: str, found: "re.Match[str]", instead: str = "") -> str:
    return source[: found.start()] + instead + source[found.end() :]


_CALL = r"mixed, _ = attend\(self, query, key, value, attention_mask, scaling=self\.scaling, \*\*kwargs\)"
EDITS: tuple[tuple[str, str, str, str | Callable[["re.Match[str]"], str]], ...] = (
    (
        "keywords thrown away in the layer",
        "BE401",
        r"( +)(normed = |mixed = self\.(?:rung|nib)\()",
        r"\1kwargs = {}\n\1\2",
    ),
    (
        "scores written out",
        "BE402 BE406",
        _CALL,
        "key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))\n        mixed = ((query @ key.transpose(-1, -2) * self.scaling).softmax(-1) @ value).transpose(1, 2)",
    ),
    (
        "torch's own attention",
        "BE402 BE406",
        _CALL,
        "mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)",
    ),
    (
        "two calls of the interface",
        "BE402",
        _CALL,
        "attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)\n        mixed, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)",
    ),
    (
        "weights used after the softmax",
        "BE403",
        _CALL,
        "mixed, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)\n        mixed = mixed if weights is None else mixed + weights.mean() * 0.1",
    ),
    (
        "a bias on the mask in the attention",
        "BE404 BE405",
        r"( +)attend = ALL",
        r"\1attention_mask = 0.5 if attention_mask is None else attention_mask + 0.5\n\1attend = ALL",
    ),
    (
        "a bias on the mask in the call",
        "BE404 BE405",
        r"value, attention_mask, scaling",
        "value, attention_mask + 0.5 if attention_mask is not None else None, scaling",
    ),
    ("a mask of the model's own", "BE405", r"mask = create_causal_mask\(", "mask = own_mask("),
    (
        "an altered mask",
        "BE405",
        r"mask = create_causal_mask\(\n",
        "mask = create_causal_mask(\n            or_mask_function=lambda b, h, q, k: k < 2,\n",
    ),
    (
        "the mask changed on the way",
        "BE405 BE404",
        r"( +)hidden_states = inputs_embeds\n",
        r"\1mask = mask if mask is None else torch.where(mask, 0.0, -1.0)\n\1hidden_states = inputs_embeds\n",
    ),
    ("no claim", "BE406", r"_supports_sdpa = _supports_attention_backend = True", "_supports_sdpa = True"),
    (
        "a window that is not passed",
        "BE407",
        r"(self\.scaling, self\.is_causal = [^\n]+)\n",
        r"\1\n        self.sliding_window = 16\n",
    ),
    (
        "a window that the config does not have",
        "BE407",
        r"scaling=self\.scaling, \*\*kwargs\)",
        "scaling=self.scaling, sliding_window=16, **kwargs)",
    ),
    (
        "a window in the config that the mask does not have",
        "BE407",
        r"(        super\(\).__init__\(\*\*kwargs\))",
        r"        self.sliding_window = 16\n\1",
    ),
    (
        "a window in the mask that the config does not give",
        "BE407",
        r"(?s)(        super\(\).__init__\(\*\*kwargs\))(.*?)mask = create_causal_mask\(",
        r"        self.sliding_window, self.layer_types = 16, ['full_attention'] * num_hidden_layers\n\1\2from transformers.masking_utils import create_sliding_window_causal_mask\n\n        mask = create_sliding_window_causal_mask(",
    ),
    (
        "a soft-cap that is not passed",
        "BE407",
        r"(        super\(\).__init__\(\*\*kwargs\))",
        r"        self.attn_logit_softcapping = 30.0\n\1",
    ),
    (
        "a soft-cap by another name, not passed",
        "BE407",
        r"(        super\(\).__init__\(\*\*kwargs\))",
        r"        self.attention_soft_cap = 30.0\n\1",
    ),
    (
        "a soft-cap that the config does not have",
        "BE407",
        r"scaling=self\.scaling, \*\*kwargs\)",
        "scaling=self.scaling, softcap=30.0, **kwargs)",
    ),
    (
        "key-value heads by a name that the client does not know",
        "BE419",
        r"(?s).+num_key_value_heads.+",
        lambda found: found[0].replace("num_key_value_heads", "narrow_heads"),
    ),
    ("no is_causal", "BE407", r"self\.scaling, self\.is_causal = (.+), True", r"self.scaling = \1"),
    ("is_causal is False", "BE407", r"(self\.scaling, self\.is_causal = .+), True", r"\1, False"),
    (
        "the output taken by its shape",
        "BE408",
        r"mixed\.reshape\(\*[a-z_.]+\[:-1\], -1\)",
        "mixed.reshape(*mixed.shape[:2], -1)",
    ),
    (
        "a gate in the shape of the output",
        "BE408",
        rf"({_CALL})",
        r"\1\n        mixed = mixed * torch.sigmoid(query.transpose(1, 2).contiguous().view_as(mixed))",
    ),
    ("a scale that is computed", "BE408", r"scaling=self\.scaling,", "scaling=self.head_dim**-0.5,"),
    ("no layer_idx", "BE408 BE401 TP210", r"layer_idx, config\.head_dim", "str(layer_idx), config.head_dim"),
    (
        "the interface called where it is looked up",
        "BE408",
        r"mixed, _ = attend\(",
        "mixed, _ = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation](",
    ),
    ("a scale in the head", "BE409", r"logits = self\.lm_head\((.+)\)", r"logits = self.lm_head(\1) / 8.0"),
    (
        "a norm in the head",
        "BE409",
        r"logits = self\.lm_head\((.+)\)",
        r"logits = self.lm_head(nn.functional.normalize(\1))",
    ),
    ("a head by another name", "BE410 BE409", r"lm_head", "readout"),
    ("a norm by another name", "BE410", r"self\.weight", "self.gain"),
    ("no position_ids", "BE418", r"        position_ids: torch\.Tensor \| None = None,\n", ""),
    ("no inputs_embeds", "BE418 BE401 TP210", r"        inputs_embeds: torch\.Tensor \| None = None,\n", ""),
    (
        "an operation before the layers",
        "BE432 BE433",
        r"hidden_states = inputs_embeds\n",
        "hidden_states = inputs_embeds * 2.0\n",
    ),
    (
        "an operation after the layers",
        "BE432 BE433",
        r"last_hidden_state=self\.(top|end)\(hidden_states\)",
        r"last_hidden_state=self.\1(hidden_states) * 2.0",
    ),
    (
        "a loop that reads an attribute of the layer",
        "BE433",
        r"hidden_states = (step|stroke)\(hidden_states, ",
        r"_ = \1.training_scale\n            hidden_states = \1(hidden_states, ",
    ),
    ("layers that give tuples", "BE433", r"hidden_states = (step|stroke)\((.+)\)\n", r"hidden_states = \1(\2)[0]\n"),
)
HELPERS = """

def own_mask(config, inputs_embeds, attention_mask, past_key_values, position_ids):
    length = inputs_embeds.shape[1]
    hidden = torch.ones(length, length, dtype=torch.bool, device=inputs_embeds.device).triu(1)
    return torch.zeros(1, 1, length, length, device=hidden.device).masked_fill(hidden, -1e9)
"""


def with_context(planted: Planted) -> str:
    """The source with what the fault needs beside its own line."""
    source = planted.source + HELPERS
    if "attribute of the layer" in planted.name:
        source = re.sub(
            r"(        super\(\).__init__\(\)\n)(        self\.(?:rung|level))",
            r"\1        self.training_scale = 1.0\n\2",
            source,
        )
    if "give tuples" in planted.name:
        source = re.sub(r"        return (hidden_states \+ [^\n#]+)", r"        return (\1,)", source)
    if "head by another name" in planted.name:
        source = source.replace("lm_head", "readout").replace(
            "_supports_sdpa", "_tie_nothing = True\n    _supports_sdpa"
        )
    if "norm by another name" in planted.name:
        source = source.replace("self.weight", "self.gain")
    if "no inputs_embeds" in planted.name:
        source = source.replace(
            "        if inputs_embeds is None:\n            inputs_embeds = ", "        inputs_embeds = "
        )
    if "no position_ids" in planted.name:
        source = source.replace(
            "        if position_ids is None:\n            seen", "        if True:\n            seen"
        )
    return source


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """One row a fault; 1 where one is missed, or a right model is accused."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in types or MODELS:
            source = (ROOT / CUSTOM[model].partition(":")[0]).read_text()
            kind = CUSTOM[model].partition(":")[2]
            # A folder and so a module of its own: under one name, Python would show the source of the model before.
            right = Path(folder) / model
            right.mkdir()
            found = _found(source, kind, right, frozenset())
            rows.append({"model": model, "fault": "", **found})
            print(
                f"{model:<8} {'as it is':<46} {'right' if found['right'] else 'ACCUSED'} {found['codes']}", flush=True
            )
            for number, planted in enumerate(faults(source)):
                place = Path(folder) / f"{model}{number}"
                place.mkdir()
                found = _found(with_context(planted), kind, place, planted.codes)
                rows.append({"model": model, "fault": planted.name, **found})
                print(
                    f"{model:<8} {planted.name:<46} {'found' if found['right'] else 'MISSED'} {found['codes']}",
                    flush=True,
                )
    out.write_text(json.dumps(rows, indent=1))
    missed = [row for row in rows if not row["right"]]
    print(f"{len(rows) - len(missed)} of {len(rows)} right")
    return int(bool(missed))


def _found(source: str, kind: str, folder: Path, wanted: frozenset[str]) -> dict[str, object]:
    file = folder / f"planted_{folder.name}.py"
    file.write_text(source)
    report = check(load(f"{file}:{kind}"), Plan(), clients=CLIENTS)
    codes = sorted({f.code for f in report.findings if f.severity is not Severity.UNDECIDED})
    return {"codes": codes, "right": bool(wanted & set(codes)) if wanted else not codes}
