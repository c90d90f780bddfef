"""The head counts that NeMo AutoModel asks for, and those that it writes into attention modules.

Source: NeMo AutoModel 0.7.0, `components/distributed/parallelizer.py`: `validate_tp_mesh` with `_attention_config`, and
`_attention_is_head_sharded` with `_update_attention_head_counts_for_tp`, which look at the plan's keys and not at what they
reached.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from shardproof.planner.inputs.example import accept_form, accepted_form
from shardproof.planner.ir.findings import Finding
from shardproof.planner.tracing.programs import Subject
from shardproof.planner.tracing.session import structural_copy
from shardproof.verify.clients.dialect import Dialect
from shardproof.verify.findings import be414

PROJECTIONS = tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "qkv"))


def refused_heads(dialect: Dialect, model: nn.Module, degree: int) -> Iterator[Finding]:
    """A finding BE414 for query or key-value heads that do not divide, whatever the plan says."""
    config = _attention_config(model)
    heads = getattr(config, "num_attention_heads", None)
    kv = getattr(config, "num_key_value_heads", None) or heads
    for name, count in (("key-value", kv), ("query", heads)):
        if isinstance(count, int) and count % degree:
            cite = dialect.cites[0]
            yield be414.heads_do_not_divide(name, count, degree=degree, client=dialect.name, cite=cite)


def _attention_config(model: nn.Module) -> object | None:
    """The config of the innermost module that has one with attention heads; a language model's before others."""
    found: list[tuple[int, object]] = []
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        if hasattr(config, "num_attention_heads"):
            found.append((_depth(path) + 2 * ("language_model" in path or "text_model" in path), config))
        text = getattr(config, "text_config", None)
        if hasattr(text, "num_attention_heads"):
            found.append((3 + _depth(path), text))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _depth(path: str) -> int:
    return path.count(".")


def with_local_heads(subject: Subject, styles: Mapping[str, str], degree: int) -> Subject:
    """The subject whose attention modules have the head counts that a rank's have; the same where none changes."""
    if not any(key.endswith(PROJECTIONS) and style == "colwise" for key, style in styles.items()):
        return subject
    changed = structural_copy(subject.model)
    if (form := accepted_form(subject.model)) is not None:
        accept_form(changed, form)
    written = [_write(attention, changed.config, degree) for attention in _attentions(changed)]
    return replace(subject, model=changed) if any(written) else subject


def _attentions(model: nn.Module) -> Iterator[nn.Module]:
    for owner in (getattr(model, "model", model), getattr(model, "language_model", None)):
        layers = getattr(owner, "layers", None)
        if isinstance(layers, nn.ModuleList):
            found = (getattr(layer, "self_attn", None) for layer in layers)
            yield from (one for one in found if isinstance(one, nn.Module))
            return


def _write(attention: nn.Module, config: object, degree: int) -> bool:
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return False
    kv = getattr(config, "num_key_value_heads", None)
    groups = getattr(attention, "num_key_value_groups", 1)
    shares = {"num_heads": heads // degree, "num_key_value_heads": (kv // degree if kv else heads // degree // groups)}
    wanted = {name: share for name, share in shares.items() if hasattr(attention, name)}
    for name, share in wanted.items():
        setattr(attention, name, share)
    return bool(wanted)
