"""Whether our symbolic trace of a module gets as far as vLLM's own, over every module with linear layers of every type.

`python -m benchmarks traces` starts this file with the engine's interpreter (`SHARDPROOF_VLLM_PYTHON`).
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.types import causal_types
from shardproof.planner.ir.plan import generic
from shardproof.verify.clients.vllm.symbolic_trace import Traced, traced
from tests.gate import PATH

ENGINE = "vllm"


@dataclass(frozen=True, slots=True)
class Row:
    """A type: modules compared, and for each that differs what ours and the engine's trace got to."""

    name: str
    compared: int = 0
    differing: tuple[str, ...] = ()
    reason: str = ""


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """A line a type that differs or cannot be built, and the totals; 1 where anything differs."""
    del tp
    root = Path(__file__).parents[2]
    command = [os.environ["SHARDPROOF_VLLM_PYTHON"], "-m", "benchmarks.engines.traces", str(out), *types]
    subprocess.run(command, check=True, cwd=root, env={**os.environ, "PYTHONPATH": PATH})
    rows = [Row(**row) for row in json.loads(out.read_text())]
    for row in rows:
        if row.reason or row.differing:
            print(f"{row.name:<24} {row.reason or '; '.join(row.differing)}")
    differing = sum(len(row.differing) for row in rows)
    print(f"{sum(row.compared for row in rows)} modules of {len(rows)} types compared, {differing} differ")
    return int(differing > 0)


def compared(name: str) -> Row:
    """One type at its default config, on the meta device; layers alike count once."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name), attn_implementation="eager")
    except Exception as error:  # a type that does not build by itself
        return Row(name, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    modules = {
        (generic(path), type(module)): (path, module)
        for path, module in model.named_modules()
        if any(isinstance(child, nn.Linear) for child in module.children())
    }
    differing = tuple(
        f"{path}: ours {ours}, the engine's {engines}"
        for path, module in modules.values()
        if (ours := traced(module)) != (engines := _by_engine(module))
    )
    return Row(name, len(modules), differing)


def _by_engine(module: nn.Module) -> Traced:
    from vllm.model_executor.models.transformers.fx_utils import (  # type: ignore[import-not-found]  # in its environment
        trace,
    )

    def attention(module: nn.Module, *_: object, attention_instances: object = None, **__: object) -> object:
        return attention_instances[module.layer_idx]  # type: ignore[index]  # as the engine's does without the engine

    config = getattr(module, "config", None)
    held = getattr(config, "_attn_implementation_internal", None)
    with mock.patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, {ENGINE: attention}):
        if config is not None:
            config._attn_implementation_internal = ENGINE
        try:
            graph = trace(module)
        finally:
            if config is not None:
                config._attn_implementation_internal = held
    nodes = graph.nodes if graph is not None else ()
    called = frozenset(str(node.target) for node in nodes if node.op == "call_module")
    return Traced(called, any(node.op == "output" for node in nodes))


if __name__ == "__main__":
    found = [asdict(compared(name)) for name in sys.argv[2:] or causal_types()]
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
