"""Ranked layouts as a table for a reader, or as JSON; with the commands that start the best one."""

import json
import shlex
from dataclasses import dataclass

from shardproof.planner.ir.readable_text import format_bytes
from shardproof.planner.layouts.cost import Facts, Load, Machine
from shardproof.planner.layouts.search import Choice, Search

SHOWN = 12
"""Layouts in the table; JSON has all of them."""

NOTE = "* no other is better in memory and time; ~ estimated, the rest is exact, of the fullest and the busiest rank"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the commands serve: a checkpoint as the user named it (None of a bare architecture), and whether its own code runs."""

    title: str
    checkpoint: str | None = None
    custom_code: bool = False


CHECKPOINT = "CHECKPOINT"
"""Stands in commands for a checkpoint that the user has yet to name."""


def layouts_text(model: ServedModel, found: Search, facts: Facts, machine: Machine, load: Load) -> str:
    """The table, the reasons against the others, and the commands of the first."""
    parts = [headline(model.title, machine, load), _table(found, load)]
    parts += uncounted(facts, load)
    if found.illegal:
        parts.append("not legal:\n" + "\n".join(f"  {layout}: {reason}" for layout, reason in gathered(found)))
    if found.choices:
        parts.append(
            "start the first with:\n"
            + "\n".join(f"  {line}" for line in commands(model, found.choices[0], machine, load))
        )
        if model.checkpoint is None and not load.train:
            parts.append(f"{CHECKPOINT} stands for the folder or the Hub name of your checkpoint")
    else:
        parts.append(nothing_legal(found))
    return "\n\n".join(parts)


def uncounted(facts: Facts, load: Load) -> list[str]:
    """What is not counted, or not as it is stored; nothing in training, which keeps no cache and trains weights as they were."""
    if load.train:
        return []
    said = ["cache: not known for this model, and not counted"] if facts.cache is None else []
    if facts.unknown:
        how = f"weights: counted as before they were quantised ({facts.unknown})"
        said.append(f"{how}; a folder with the checkpoint's files says what it stores")
    return said


def nothing_legal(found: Search) -> str:
    """What to change where no layout is legal: more memory helps only where some layout fails by memory alone."""
    if any(reason.startswith("memory") for _, reason in found.illegal):
        return "no layout is legal: give more devices or memory, or a smaller batch or context"
    return "no layout is legal, whatever the memory: give another number of devices or a larger batch, or mend the plan"


def headline(model: str, machine: Machine, load: Load) -> str:
    """One line: the model, the machine and the load."""
    return (
        f"{model} on {machine.devices} devices of {format_bytes(machine.memory)}, "
        f"{load.batch} sequences of {load.context} tokens, {'training with AdamW' if load.train else 'serving'}"
    )


def gathered(found: Search) -> list[tuple[str, str]]:
    """Layouts that are not legal, grouped by reason: the names of the layouts, and the reason."""
    by: dict[str, list[str]] = {}
    for layout, reason in found.illegal:
        by.setdefault(reason, []).append(str(layout))
    return [
        (", ".join(names) if len(names) < 4 else f"{', '.join(names[:3])} and {len(names) - 3} more", reason)
        for reason, names in by.items()
    ]


def columns(load: Load) -> tuple[str, ...]:
    """The head of the table."""
    training = ("gradients", "optimizer") if load.train else ("cache",)
    held = ("parameters", *training, "activations ~", "in all")
    return ("", "layout", "layers a stage", *held, "collectives", "per token", "to stages", "time ~")


def row(choice: Choice, load: Load, *, best: float) -> tuple[str, ...]:
    """One layout; its time is a multiple of the best one's."""
    held = choice.held
    kept = (format_bytes(held.gradients), format_bytes(held.optimizer)) if load.train else (format_bytes(held.cache),)
    return (
        "*" if choice.pareto else "",
        str(choice.layout),
        _layers(choice.layers),
        format_bytes(held.parameters),
        *kept,
        format_bytes(held.activations),
        format_bytes(held.total),
        str(choice.sent.count),
        f"{'~ ' if choice.sent.estimated else ''}{format_bytes(choice.sent.bytes_per_token)}",
        format_bytes(choice.handed) if choice.handed else "",
        f"{choice.seconds / best:.2f}",
    )


def _table(found: Search, load: Load) -> str:
    if not found.choices:
        return "no legal layout"
    best = found.choices[0].seconds
    rows = [columns(load), *(row(choice, load, best=best) for choice in found.choices[:SHOWN])]
    widths = [max(len(one[at]) for one in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(one, widths, strict=True)).rstrip() for one in rows]
    more = len(found.choices) - SHOWN
    return "\n".join([*lines, *([f"and {more} more (--format json has all)"] if more > 0 else []), NOTE])


def _layers(layers: tuple[int, ...]) -> str:
    least, most = min(layers), max(layers)
    return str(most) if least == most else f"{least}-{most}"


def commands(model: ServedModel, choice: Choice, machine: Machine, load: Load) -> list[str]:
    """The commands that start a layout, one for each client, with an uneven split of layers where the client takes one.

    They are quoted for a POSIX shell. A bare architecture has no checkpoint to serve: `CHECKPOINT` stands for it.
    """
    tp, pp, dp, ep = choice.layout.tp, choice.layout.pp, choice.layout.dp, choice.layout.ep
    if load.train:
        return [_training(choice, machine)]
    partition = ",".join(map(str, choice.layers)) if len(set(choice.layers)) > 1 else ""
    served = shlex.quote(model.checkpoint or CHECKPOINT)
    vllm = f"vllm serve {served} --model-impl transformers --tensor-parallel-size {tp} --pipeline-parallel-size {pp}"
    vllm += f" --data-parallel-size {dp}" if dp > 1 else ""
    vllm += " --enable-expert-parallel" if ep > 1 else ""
    vllm += " --distributed-executor-backend ray" if machine.nodes > 1 else ""
    sglang = (
        f"python -m sglang.launch_server --model-path {served} --model-impl transformers --tp-size {tp} --pp-size {pp}"
    )
    sglang += f" --dp-size {dp}" if dp > 1 else ""
    sglang += f" --ep-size {ep}" if ep > 1 else ""
    for_code = " --trust-remote-code" if model.custom_code else ""
    vllm, sglang = vllm + for_code, sglang + for_code
    sglang += f" --nnodes {machine.nodes} --node-rank $RANK --dist-init-addr $HEAD:5000" if machine.nodes > 1 else ""
    return [
        (f"VLLM_PP_LAYER_PARTITION={partition} " if partition else "") + vllm,
        (f"SGLANG_PP_LAYER_PARTITION={partition} " if partition else "") + sglang,
        _serving(choice, machine),
    ]


def _training(choice: Choice, machine: Machine) -> str:
    """Replicas are the client's too, but not beside stages (transformers 5.23.0, distributed/configuration_utils.py)."""
    pp, dp = choice.layout.pp, choice.layout.dp
    replicas, own = (f", dp_replicate_size={dp}" if dp > 1 and pp == 1 else ""), ""
    if dp > 1 and pp > 1:
        own = f"; the {dp} replicas are the script's own: Transformers makes none beside stages"
    job = f"torchrun --nnodes {machine.nodes} --nproc-per-node {machine.per_node} train.py"
    return f"{job}  # {_distributed(choice, replicas)}{own}"


def _serving(choice: Choice, machine: Machine) -> str:
    """The command of one replica; every replica is a job of its own."""
    ranks, dp = choice.layout.tp * choice.layout.pp, choice.layout.dp
    nodes = -(-ranks // machine.per_node)
    job = f"torchrun --nnodes {nodes} --nproc-per-node {ranks // nodes} serve.py"
    return f"{job}  # {_distributed(choice)}{f'; {dp} jobs like it' if dp > 1 else ''}"


def _distributed(choice: Choice, more: str = "") -> str:
    tp, ep, pp = choice.layout.tp, choice.layout.ep, choice.layout.pp
    degrees = f"tp_size={tp}, {f'ep_size={ep}, ' if ep > 1 else ''}pp_size={pp}{more}"
    return f"from_pretrained(..., distributed_config=DistributedConfig({degrees}))"


def layouts_json(model: ServedModel, found: Search, facts: Facts, machine: Machine, load: Load) -> str:
    """Everything: sizes in bytes."""
    return json.dumps(
        {
            "model": model.title,
            "cache_known": facts.cache is not None,
            "weights_known": not facts.unknown,
            "layouts": [_choice(model, choice, machine, load) for choice in found.choices],
            "illegal": [
                {"tp": layout.tp, "pp": layout.pp, "dp": layout.dp, "ep": layout.ep, "reason": reason}
                for layout, reason in found.illegal
            ],
        },
        indent=2,
        allow_nan=False,
    )


def _choice(model: ServedModel, choice: Choice, machine: Machine, load: Load) -> dict[str, object]:
    held, layout = choice.held, choice.layout
    return {
        "tp": layout.tp,
        "pp": layout.pp,
        "dp": layout.dp,
        "ep": layout.ep,
        "layers": list(choice.layers),
        "stage_bytes": [stage.total for stage in choice.stages],
        "bytes": {
            "parameters": held.parameters,
            "gradients": held.gradients,
            "optimizer": held.optimizer,
            "cache": held.cache,
            "activations_estimated": held.activations,
            "total": held.total,
        },
        "collectives": choice.sent.count,
        "collective_bytes_estimated": choice.sent.estimated,
        "collective_bytes_per_token": choice.sent.bytes_per_token,
        "collective_bytes_per_sequence": choice.sent.bytes_per_sequence,
        "collective_bytes_per_step": choice.sent.bytes_per_step,
        "stage_bytes_per_token": choice.handed,
        "replica_bytes_per_step": choice.summed,
        "seconds_estimated": choice.seconds,
        "pareto": choice.pareto,
        "commands": commands(model, choice, machine, load),
    }
