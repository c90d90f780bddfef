"""`python -m benchmarks quantised [--types METHOD,...] [--page docs/quantised.md]`: every registered method, proof beside ranks.

Packages of the methods are found on the path; what is missing there is told, and the row then says nothing of ranks.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from benchmarks.quantised import on_ranks
from benchmarks.quantised.checkpoints import write
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.programs import on_meta
from shardproof.verify.proof.prove import prove

SECONDS = 100
FORMS = {
    "fp8": ("fp8 by blocks", "fp8 per tensor"),
    "bitsandbytes_4bit": ("bitsandbytes nf4", "bitsandbytes fp4 nested"),
    "bitsandbytes_8bit": ("bitsandbytes 8 bit",),
    "torchao": ("torchao int8", "torchao float8"),
    "compressed-tensors": ("compressed-tensors int8", "compressed-tensors int4"),
}
"""Methods with several ways to store a weight."""
ELSEWHERE = ("gguf",)
"""Read from files of another format, which `--weights` runs (`python -m benchmarks weights`)."""
EVERY = tuple(
    form for method in AUTO_QUANTIZER_MAPPING if method not in ELSEWHERE for form in FORMS.get(method, (method,))
)
PLANS = ("own", "head")

Row = dict[str, Any]


def main(methods: tuple[str, ...], out: Path, *, tp: int, page_at: Path | None) -> int:
    """Go over the methods that `out` does not hold yet; 1 where a plan is proved with which ranks compute something else."""
    rows: list[Row] = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {row["method"] for row in rows}
    for method in methods or EVERY:
        if method not in known:
            row = _row(method, tp)
            print(json.dumps(row), flush=True)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
    if page_at is not None:
        page_at.write_text(page(rows, tp))
    return int(any(verdict(row, plan) == WRONG for row in rows for plan in PLANS))


def _row(method: str, tp: int) -> Row:
    row: Row = {"method": method, "ranks": {}, "proof": {}}
    with tempfile.TemporaryDirectory(prefix="shardproof-quantised-") as where:
        folder = Path(where)
        try:
            write(folder, method)
        except Exception as error:
            return {**row, "alone": f"no checkpoint could be made here ({on_ranks.told(error)})"}
        for plan in PLANS:
            row["proof"][plan] = _proved(folder, plan, tp)
            if "alone" not in row:
                found = _ran(folder, plan, tp)
                row |= {"alone": found["alone"]} if "alone" in found else {}
                row["ranks"][plan] = found
    return row


def _proved(folder: Path, plan: str, tp: int) -> list[str]:
    """The verdict, and the first finding that is more than a warning."""
    loaded = load(str(folder))
    if plan == "head":
        setattr(loaded.config, "base_model_tp_plan", {})  # noqa: B010  # the class has one too
    found = prove(loaded, carried_plan(loaded, on_meta(loaded)), tp=tp)
    worse = [one.message for one in found.findings if one.severity.name != "WARNING"]
    return [found.verdict.value, *worse[:1]]


def _ran(folder: Path, plan: str, tp: int) -> Row:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(tp), "--standalone"]
    try:
        ended = subprocess.run(
            [*command, on_ranks.__file__, str(folder), plan],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
    except subprocess.TimeoutExpired:
        return {"raises": f"no answer in {SECONDS} seconds"}
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return lines[0] if lines else {"raises": f"ended with {ended.returncode}"}


WRONG, RIGHT, ABSTAINS = "proved and wrong", "proved and right", "not proved"
REFUTED, ACCUSED = "refuted, and ranks fail, or one device does", "refuted although right"
ALONE = "no checkpoint, or one device does not run it"


def verdict(row: Row, plan: str) -> str:
    """How the proof's word stands to what ranks did."""
    said, ran = (row["proof"].get(plan) or ["none"])[0], row["ranks"].get(plan) or {}
    if said == "none":
        return ALONE
    if said == "not proved":
        return ABSTAINS
    if "error" not in ran and "raises" not in ran:
        return ALONE if said == "proved" else REFUTED
    right = ran.get("error", 1.0) <= on_ranks.LIMIT
    if said == "proved":
        return RIGHT if right else WRONG
    return ACCUSED if right else REFUTED


def page(rows: Sequence[Row], tp: int) -> str:
    """docs/quantised.md."""
    rows = sorted((row for row in rows if row["method"] in EVERY), key=lambda row: EVERY.index(row["method"]))
    missing = [method for method in EVERY if method not in {row["method"] for row in rows}]
    counted = Counter(verdict(row, plan) for row in rows for plan in PLANS)
    versions = f"Transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"
    lines = [
        "# Quantised checkpoints",
        "",
        f"Every method that the quantisers of {versions} register. A small checkpoint of each is loaded by",
        f"Transformers on one device and on {tp} real ranks (gloo, CPU), and logits are compared. Beside it stands what",
        "`plan verify --level proof` says of the same folder. Written by",
        "`python -m benchmarks quantised --page docs/quantised.md`; do not edit by hand.",
        "",
        "*own* is the model's own plan; *head* shards nothing but the head and the embedding, which these checkpoints keep whole",
        "where the method allows it. A method whose layout of packed weights is not modelled is `not proved`, by its name.",
        *([f"Not measured: {', '.join(missing)}."] if missing else []),
        "",
        "| verdict | plans |",
        "|---|---|",
        *(f"| {what} | {counted[what]} |" for what in (RIGHT, REFUTED, ABSTAINS, ALONE, ACCUSED, WRONG)),
        "",
        "| method | plan | ranks | proof | why |",
        "|---|---|---|---|---|",
        *(_line(row, plan) for row in rows for plan in PLANS if plan in row["proof"] or plan == "own"),
        "",
    ]
    return "\n".join(lines)


def _line(row: Row, plan: str) -> str:
    ran = row["ranks"].get(plan) or {}
    if row.get("alone"):
        ranks = f"not asked: one device: {row['alone']}"
    elif "error" in ran:
        right = ran["error"] <= on_ranks.LIMIT
        ranks = f"right ({ran['error']:.0e})" if right else f"**wrong** ({ran['error']:.2g})"
    else:
        ranks = f"raise {ran.get('raises', '')}"
    said, *why = row["proof"].get(plan) or ["-"]
    return f"| {' | '.join(map(_cell, (row['method'], plan, ranks, said, why[0] if why else '-')))} |"


def _cell(text: str) -> str:
    text = re.sub(r"\s?\(?(?<!\w)/[\w./-]+\)?", "", text)  # no path of the machine that measured
    short = text if len(text) <= 220 else text[:217] + "..."
    return " ".join(short.split()).replace("|", "\\|").replace("] [", "] \\[").replace("<", "&lt;")
