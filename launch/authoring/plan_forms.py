"""A proved plan in the form that a tool takes: Python for torch and Transformers, JSON for DeepSpeed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardproof.planner.ir.readable_text import one_line, python_string
from shardproof.planner.ir.styles import ParameterLayout, style_of

TORCH = {
    "colwise": "ColwiseParallel()",
    "colwise_gather_output": "ColwiseParallel(output_layouts=Replicate())",
    "colwise_rep": "ColwiseParallel(output_layouts=Replicate())",
    "rowwise": "RowwiseParallel()",
    "rowwise_split_input": "RowwiseParallel(input_layouts=Replicate())",
    "rowwise_rep": "RowwiseParallel(input_layouts=Replicate())",
    "embedding_rowwise": "RowwiseParallel(input_layouts=Replicate())",
    "embedding_colwise": "ColwiseParallel(output_layouts=Replicate())",
    "replicated_with_grad_allreduce": "SummedGradients()",
}
"""The torch style of each Transformers style; the last is none of torch's, and is printed with the plan."""

SUMMED = '''

class SummedGradients(ParallelStyle):
    """Parameters that stay whole on every rank; their gradients are summed over the ranks."""

    def _apply(self, module, device_mesh):
        group = device_mesh.get_group()
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(lambda one: all_reduce(one.grad, group=group))
        return module

'''


@dataclass(frozen=True, slots=True)
class PrintedForm:
    """The text for the tool, and a sentence for each thing that the form cannot say."""

    text: str
    lost: tuple[str, ...] = ()


NEMO_SUMMED = "from nemo_automodel.components.distributed.parallel_styles import ReplicatedWithGradAllReduce"
"""NeMo's style for gradients that are summed: FSDP, in which NeMo wraps every model, drops the hook of the printed one."""


def parallelize_form(
    title: str, styles: Mapping[str, str], lost: Sequence[str] = (), *, nemo: bool = False
) -> PrintedForm:
    """Python that makes `PLAN` for `parallelize_module(model, mesh, PLAN)`.

    Args:
        title: what stands in the first comment.
        styles: keys as the head model sees them -> Transformers' style, each with a style of torch.
        lost: sentences on entries that were left out before.
        nemo: for the `tp_plan` of a NeMo recipe, with NeMo's own style for gradients that are summed.
    """
    used = {key: TORCH[style] for key, style in styles.items()}
    if nemo:
        used = {key: text.replace("SummedGradients", "ReplicatedWithGradAllReduce") for key, text in used.items()}
    names = [name for name in ("ColwiseParallel", "RowwiseParallel") if any(name in text for text in used.values())]
    summed = "SummedGradients()" in used.values()
    names += ["ParallelStyle"] if summed else []
    imports = ["from torch.distributed import all_reduce"] if summed else []
    if any("Replicate()" in text for text in used.values()):
        imports.append("from torch.distributed.tensor import Replicate")
    if any("ReplicatedWithGradAllReduce()" in text for text in used.values()):
        imports.insert(0, NEMO_SUMMED)
    if names:
        imports.append(f"from torch.distributed.tensor.parallel import {', '.join(sorted(names))}")
    body = "".join(f"    {python_string(key)}: {text},\n" for key, text in used.items())
    head = "\n".join([*_comments([title, *lost]), *imports])
    return PrintedForm(f"{head}\n{SUMMED if summed else ''}\nPLAN = {{\n{body}}}", tuple(lost))


def distributed_config_form(title: str, degree: int, styles: Mapping[str, str], lost: Sequence[str]) -> PrintedForm:
    """Python that makes the `DistributedConfig` for `from_pretrained(..., distributed_config=config)`.

    `styles` are the entries to be merged over the model's own; keys as the head model sees them.
    """
    body = "".join(f"        {python_string(key)}: {python_string(style)},\n" for key, style in styles.items())
    head = "\n".join([*_comments([title, *lost]), "from transformers.distributed import DistributedConfig"])
    text = f"{head}\n\nconfig = DistributedConfig(\n    tp_size={degree},\n    tp_plan={{\n{body}    }},\n)"
    return PrintedForm(text, tuple(lost))


def diffusers_form(
    title: str, styles: Mapping[str, str], whys: Mapping[str, str], lost: Sequence[str] = ()
) -> PrintedForm:
    """Python for the body of a class of diffusers: its `_tp_plan`.

    Args:
        title: what stands in the first comment.
        styles: keys -> `colwise`, `rowwise`, or one of both with packed blocks.
        whys: a few words on each key.
        lost: sentences on entries that were left out before.
    """
    made = {key: _diffusers_style(style) for key, style in styles.items()}
    names = [
        name for name in ("PackedColwiseParallel", "PackedRowwiseParallel") if any(name in m for m in made.values())
    ]
    imports = [f"from diffusers.hooks.tensor_parallel import {', '.join(names)}", ""] if names else []
    body = "".join(
        f"    {python_string(key)}: {text},{f'  # {one_line(whys[key])}' if whys.get(key) else ''}\n"
        for key, text in made.items()
    )
    head = "\n".join([*_comments([title, *lost]), *imports])
    return PrintedForm(f"{head}\n_tp_plan = {{\n{body}}}", tuple(lost))


def _diffusers_style(style: str) -> str:
    found = style_of(style)
    if found is None or not found.packing:
        return python_string(style)
    kind = "Colwise" if found.layout is ParameterLayout.PACKED_OUTPUT else "Rowwise"
    return f"Packed{kind}Parallel({list(found.packing)})"


def deepspeed_form(degree: int, styles: Mapping[str, str], *, vocabulary_apart: bool) -> PrintedForm:
    """The `tensor_parallel` section of a DeepSpeed config, as JSON.

    Args:
        degree: the number of ranks.
        styles: keys as the head model sees them -> a style that DeepSpeed has.
        vocabulary_apart: an output head that shares its weight with the table keeps its part of the vocabulary.
    """
    specs = [_layer_spec(key, style) for key, style in styles.items() if style != "embedding_rowwise"]
    section: dict[str, object] = {"autotp_size": degree}
    if vocabulary_apart:
        section["vocab_parallel_lm_head"] = True
    section["partition_config"] = {"use_default_specs": False, "layer_specs": specs}
    lost = tuple(
        f"{key}: a partition_config cannot split a table that shares no weight with the output head; it stays whole"
        for key, style in styles.items()
        if style == "embedding_rowwise" and not vocabulary_apart
    )
    return PrintedForm(json.dumps({"tensor_parallel": section}, indent=2), lost)


def _layer_spec(key: str, style: str) -> dict[str, object]:
    """One spec (DeepSpeed 0.19.8, `module_inject/autotp_config.py`): a regular expression on the weight's whole name."""
    pattern = "[0-9]+".join(re.escape(part) for part in key.split("*")) + "\\.weight$"
    spec: dict[str, object] = {"patterns": [pattern]}
    if style == "rowwise":
        return {**spec, "partition_type": "row"}
    if style == "replicated_with_grad_allreduce":
        return {**spec, "partition_type": "skip", "grad_allreduce": True}
    return {**spec, "partition_type": "column", "gather_output": style != "colwise"}


def _comments(sentences: Sequence[str]) -> list[str]:
    return [f"# {one_line(sentence)}" for sentence in sentences]
