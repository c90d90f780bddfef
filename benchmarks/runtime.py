"""Transformers' own pipeline runtime, run as it is, against what the proof says of its stages (BE433), type by type.

The runtime reads no plan; where it gives other numbers than one device or raises, the verdict must name the cause, and where
it is right there must be none.
"""

import json
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from benchmarks.pipelines import limited
from benchmarks.types import causal_types
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.clients.transformers.dialect import TRANSFORMERS
from shardproof.verify.clients.transformers.even_stages import check_even_stages
from shardproof.verify.run.collectives.threads import Threads
from shardproof.verify.run.compare.tensors import LIMIT, relative_error
from shardproof.verify.run.inputs import Inputs, inputs
from shardproof.verify.run.reference import State, from_state, single_device
from shardproof.verify.stages.case import Case

STAGES = 2
SECONDS = 60


@dataclass(frozen=True, slots=True)
class Row:
    """`ran`: right, wrong, crashes or not run; `said`: what the proof says of the stages, empty where it finds nothing."""

    model: str
    ran: str
    said: str = ""
    error: float = 0.0
    why: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the proof accuses the runtime where it is to blame, and only there."""
        return self.ran == "not run" or (self.ran == "right") == (not self.said)


def main(types: tuple[str, ...], out: Path, *, page_at: Path | None = None) -> int:
    """Judge these types (all causal-LM types by default), print the counts and those that differ; exit 1 where one does."""
    lines = out.read_text().splitlines() if out.exists() else []
    known = {row.model: row for row in (Row(**json.loads(line)) for line in lines)}
    wanted = types or causal_types()
    for name in track(
        [name for name in wanted if name not in known], description="runtime", console=Console(stderr=True)
    ):
        known[name] = judged(name)
        with out.open("a") as kept:
            kept.write(json.dumps(asdict(known[name])) + "\n")
    rows = [known[name] for name in wanted]
    Console().print(summary(rows))
    if page_at is not None:
        page_at.write_text(page(rows))
    return int(not all(row.agrees for row in rows))


def judged(name: str) -> Row:
    """One type's twin at two stages."""
    try:
        with limited(SECONDS):
            small = twin(load(name), tp=1, pp=STAGES)
            findings = check_even_stages(TRANSFORMERS, small, STAGES)
            single, asked, want = _alone(small)
    except (LoadError, TwinError, TraceError, TimeoutError, ValueError, RuntimeError) as error:
        return Row(name, "not run", why=" ".join(str(error).split())[:200])
    said = findings[0].message if findings else ""
    try:
        far = _distance(small, single.state_dict(), asked.whole(), want)
    except Exception as raised:  # whatever the runtime raises is the result
        return Row(name, "crashes", said, why=f"{type(raised).__name__}: {' '.join(str(raised).split())[:200]}")
    return Row(name, "right" if far <= LIMIT else "wrong", said, far)


def _alone(small: LoadedModel) -> tuple[PreTrainedModel, Inputs, torch.Tensor]:
    """One device's model, what it is asked, and its answer; `RuntimeError` where it raises."""
    single = single_device(Case(small, Plan()), torch.device("cpu"))
    asked = inputs(single)
    try:
        with torch.no_grad():
            return single, asked, single(**asked.whole())[0]
    except Exception as error:
        raise RuntimeError(f"one device raises {type(error).__name__}: {error}") from error


def _distance(small: LoadedModel, state: State, arguments: dict[str, torch.Tensor], want: torch.Tensor) -> float:
    """How far the logits of the runtime's stages, ranks being threads, lie from those of one device."""

    def rank(_: int) -> float:
        own = replace(small, config=deepcopy(small.config))
        model = from_state(own, state, DistributedConfig(pp_size=STAGES))
        with torch.no_grad():
            return relative_error(model(**arguments).logits, want)

    with quiet(), Threads(STAGES) as ranks:
        return max(ranks.run(rank, timeout=SECONDS))


def summary(rows: Sequence[Row]) -> str:
    """The counts, and each type on which proof and runtime differ."""
    ran = Counter(row.ran for row in rows)
    told = sum(bool(row.said) for row in rows if row.ran in ("wrong", "crashes"))
    lines = [
        f"{len(rows)} types: " + ", ".join(f"{count} {what}" for what, count in ran.most_common()),
        f"named by the proof: {told} of {ran['wrong'] + ran['crashes']} that are wrong or crash",
        f"accused though right: {sum(bool(row.said) for row in rows if row.ran == 'right')}",
        *(
            f"{row.model}: {row.ran}, said {row.said or 'nothing'}, {row.error:.0e} {row.why}"
            for row in rows
            if not row.agrees
        ),
    ]
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    """docs/pipeline_runtime.md."""
    wrong = [row for row in rows if row.ran in ("wrong", "crashes")]
    left = [row for row in rows if row.ran == "not run"]
    lines = [
        "# Transformers' own pipeline runtime",
        "",
        f"Transformers {transformers.__version__} splits every model into {STAGES} stages by itself, whatever the plan says, and",
        "each stage runs the whole forward with identities in the place of what it lacks. Each type's twin is run by that",
        "runtime, ranks as threads, and its stages are proved (BE433). Written by",
        "`python -m benchmarks runtime --page docs/pipeline_runtime.md`.",
        "",
        *(f"- {line}" for line in summary(rows).splitlines()[:3]),
        "",
        "| type | the runtime | what the proof says |",
        "|---|---|---|",
        *(f"| {row.model} | {row.ran} | {_escaped(row.said or 'nothing')} |" for row in wrong),
        "",
        "## Not run",
        "",
        "| type | why |",
        "|---|---|",
        *(f"| {row.model} | {_escaped(row.why)} |" for row in left),
        "",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """As a cell of a table: no bars, no brackets that would be links."""
    return text.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
