"""BE405: masks that the model makes itself.

An engine's attention takes no mask: it is causal, with the window of the config (`vllm_attention_forward`,
`vllm/model_executor/models/transformers/__init__.py`, 0.32.0; `sglang/srt/models/transformers.py`, 0.5.23). A mask
that `transformers.masking_utils` makes from the config is the same; any other mask is lost. In the trace, a mask's values are
followed back to the lines that made them: each is either a call of a masking function or the model's own code.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import nn

from shardproof.planner.ir.findings import Finding, Place, Source
from shardproof.planner.ir.graph import Graph, Op, Ref
from shardproof.planner.loading.source_lines import relative
from shardproof.verify.clients.contract.functions import names_in
from shardproof.verify.findings import be405

MAKERS = "transformers.masking_utils"
ALTERED = ("or_mask_function", "and_mask_function")
"""Arguments that make a masking function return another mask than the config says."""
_MOVES = (
    "aten.slice",
    "aten.expand",
    "aten._to_copy",
    "aten.unsqueeze",
    "aten.squeeze",
    "aten.view",
    "aten.reshape",
    "aten.select",
    "aten.clone",
    "aten.contiguous",
    "aten.alias",
    "aten.to",
    "aten.zeros",
    "aten.scalar_tensor",
    "aten.transpose",
    "aten.permute",
)
"""Ops that do not change what a mask allows."""
_SHIFTS = ("aten.add", "aten.where", "aten.masked_fill", "aten.mul", "aten._to_copy", "aten.add_")
"""Ops between attention scores and their softmax by which a mask may be applied."""


def check_masks(model: nn.Module, graph: Graph, decoder: str, client: str) -> list[Finding]:
    """One finding for each line that makes a mask without the masking functions, or calls one with an altering argument."""
    made = masking_calls(model)
    found: dict[str, Finding] = {}
    for op in graph.ops:
        if decoder and not op.module.startswith(f"{decoder}."):
            continue
        for mask in masks_of(graph, op):
            hand, reached = behind(graph, mask, made)
            for call in (call for call in reached if call.altered):
                source = Source(relative(call.file), call.first)
                place = Place(source=source)
                found.setdefault(str(source), be405.mask_altered(call.altered, place, client))
            if hand is not None:
                place = Place(module=hand.module or None, source=hand.source)
                finding = be405.mask_written_out(op.module, hand.target, place, client)
                found.setdefault(str(hand.source), finding)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class MaskingCall:
    """A call of a masking function: file, lines, the argument that alters the mask, and the function's name where the call has
    it.
    """

    file: str
    first: int
    last: int
    altered: str = ""
    function: str = ""


def masking_calls(model: nn.Module) -> dict[tuple[str, int], MaskingCall]:
    """Every call of a masking function in the files of the model's own classes, by file and each of its lines."""
    return {
        (relative(call.file), number): call
        for file in _files(model)
        for call in _calls(file)
        for number in range(call.first, call.last + 1)
    }


def _files(model: nn.Module) -> list[str]:
    """The files of the model's own classes."""
    found = {}
    for module in model.modules():
        for kind in type(module).__mro__:
            if not kind.__module__.startswith(("torch.", "builtins", "transformers.modeling_utils")):
                try:
                    found[inspect.getfile(kind)] = True
                except (TypeError, OSError):
                    continue
    return list(found)


@cache
def _calls(file: str) -> tuple[MaskingCall, ...]:
    try:
        tree = ast.parse(Path(file).read_text())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ()
    imported = _imported(tree)
    makers = _makers(tree, set(imported))
    return tuple(
        MaskingCall(file, first, last, altered, imported.get(name, ""))
        for first, last, altered, name in _found(tree, makers)
    )


def _imported(tree: ast.Module) -> dict[str, str]:
    """Masking functions that a file imports: the name there -> their own."""
    return {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("masking_utils")
        for alias in node.names
    }


def _makers(tree: ast.Module, names: set[str]) -> set[str]:
    """Names of masking functions in a file: imported names, and local names that are assigned from those."""
    for node in ast.walk(tree):
        plain = isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call)
        if plain and isinstance(node, ast.Assign) and names_in(node.value) & names:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _found(tree: ast.Module, names: set[str]) -> Iterator[tuple[int, int, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and names_in(node.func) & names:
            altered = next(
                (k.arg for k in node.keywords if k.arg in ALTERED and not _nothing(k.value)),
                "",
            )
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            yield node.lineno, node.end_lineno or node.lineno, altered or "", name


def _nothing(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def masks_of(graph: Graph, op: Op) -> Iterator[int]:
    """The masks of an attention op, or of a softmax in an attention that is written out."""
    if op.target == "attention":
        mask = op.arg(3, "attn_mask")
        if isinstance(mask, Ref):
            yield mask.value
    elif op.target.endswith("softmax") and len(graph.values[op.outputs[0]].shape) == 4:
        value = op.inputs[0]
        for _ in range(6):
            made = graph.producer.get(value)
            if made is None or graph.ops[made].target not in _SHIFTS:
                return
            shift = graph.ops[made]
            scores, *others = sorted(dict.fromkeys(shift.inputs), key=lambda v: -_from(graph, v))
            yield from (other for other in others if len(graph.values[other].shape) == 4)
            value = scores


def _from(graph: Graph, value: int) -> int:
    """The position of the op that made a value; scores are made after masks."""
    return graph.producer.get(value, -1)


def behind(graph: Graph, mask: int, made: Mapping[tuple[str, int], MaskingCall]) -> tuple[Op | None, list[MaskingCall]]:
    """The first op of the model's own that computes a mask, if there is one, and the calls of masking functions it comes from."""
    wanted, seen, reached = [mask], set[int](), []
    while wanted:
        value = wanted.pop()
        position = graph.producer.get(value)
        if position is None or value in seen:
            continue
        seen.add(value)
        op = graph.ops[position]
        call = made.get((op.source.file, op.source.line)) if op.source is not None else None
        if call is not None:
            reached.append(call)
        elif op.target not in _MOVES:
            return op, reached
        else:
            wanted += op.inputs
    return None, reached
