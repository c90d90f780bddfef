"""Families in real vLLM on CPU, with our plan, at TP 2, PP 2 and TP 2 x PP 2: `SHARDPROOF_VLLM_PYTHON` names its interpreter.

The largest difference in log-probability from the single-device model; and, beside it, the same with no plan.
"""

import json
import os
import tempfile
from pathlib import Path

from launch.client import LIMIT, PYTHON, difference, servable, serve, write_checkpoint
from planner.api import suggest
from planner.frontend.load import load
from verify.backends.compile import compile_for
from verify.backends.registry import find_dialect

FAMILIES = tuple(
    "llama qwen3 smollm3 starcoder2 gpt_neox phi stablelm olmo glm cohere granite mistral seed_oss arcee gemma gemma2 "
    "helium ernie4_5 exaone4 qwen2 nemotron jais2 apertus persimmon gptj gpt_neo biogpt".split()
)
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2))


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """One row a family, written after each; what is in the file already is not run again."""
    rows: dict[str, object] = json.loads(out.read_text()) if out.is_file() else {}
    for name in types or FAMILIES:
        if name not in rows:
            rows[name] = _row(name)
            out.write_text(json.dumps(rows, indent=1))
        print(f"{name:<14} {rows[name]}", flush=True)
    return 0


def _row(name: str) -> dict[str, object]:
    python = os.environ[PYTHON]
    try:
        small = servable(load(name), tp=2, pp=2)
        plan = compile_for(find_dialect("vllm"), small, suggest(small).plan).plan
    except Exception as error:  # a family that cannot be planned is a row too
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    whole = plan.to_json()
    ours = {key: whole[key] for key in ("base_model_tp_plan", "base_model_pp_plan") if whole[key]}
    none: dict[str, object] = {"base_model_tp_plan": {}, "base_model_pp_plan": {}}
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(small, Path(folder))
        planned = serve(python, Path(folder), LAYOUTS, ours, timeout=240)
        bare = serve(python, Path(folder), LAYOUTS[1:], none, timeout=240)
    words = {f"tp {t} pp {p}": _word(difference(model, a), a.error) for (t, p), a in zip(LAYOUTS, planned, strict=True)}
    words |= {
        f"no plan, tp {t} pp {p}": _word(difference(model, a), a.error)
        for (t, p), a in zip(LAYOUTS[1:], bare, strict=True)
    }
    return {**words, "right": all(isinstance(words[f"tp {t} pp {p}"], float) for t, p in LAYOUTS)}


def _word(difference: float | None, error: str) -> float | str:
    if difference is None:
        return " ".join(error.split())[:120]
    return difference if difference <= LIMIT else f"WRONG by {difference:.3g}"
