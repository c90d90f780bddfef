"""The result of one case on one rank, as data that travels between processes."""

import json
import re
import sysconfig
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from shardproof.planner.ir.findings import Source
from shardproof.verify.run.compare.localise import Divergence
from shardproof.verify.run.compare.tensors import Comparison
from shardproof.verify.run.training.answers import TrainingAnswer, training_answer_from

PEER_LOST = re.compile(r"gloo/|NCCL|Connection (closed|reset|refused)|Timed out waiting|Broken pipe")
_SCHEDULE = re.compile(r"\[Stage \d+\] failed to run (forward|backward)")
"""The message in which torch's schedules wrap an exception of a stage; its cause is reported instead."""
_MEMORY = re.compile(r"can't allocate memory|out of memory|bad_alloc|Cannot allocate memory", re.IGNORECASE)
_OURS = Path(__file__).parents[2]
_AROUND = ("stages/exact.py", "run/collectives/own_styles.py", "run/collectives/autograd.py")
"""Files of ours that wrap operations of a model, so that their frames say nothing of who raised."""
_REFUSALS = (ValueError, FloatingPointError)
_ENGINE = "_engine_run_backward"
"""Torch's function in which autograd runs (torch 2.13.0, `autograd/graph.py`)."""
_ROOTS = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception on a rank: at which step (`stage`), what was raised, in which module, on which line of modeling code.

    `sharded` is false where the single-device model itself raised; `ours` where the code that raised is shardproof's;
    `when` is seconds since the epoch.
    """

    stage: str
    kind: str
    message: str
    module: str
    source: Source | None
    sharded: bool
    when: float
    ours: bool = False

    @property
    def limit(self) -> bool:
        """Whether this machine was too small for the run."""
        return self.kind in ("MemoryError", "OutOfMemoryError") or bool(_MEMORY.search(self.message))

    @property
    def heard_of(self) -> bool:
        """Whether this rank only noticed, in a collective, that another one was gone or silent."""
        return bool(PEER_LOST.search(self.message)) or self.kind in (
            "DistBackendError",
            "DistNetworkError",
            "DistStoreError",
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rank compared in one case.

    `refused` is what autograd refused of the model's own code, which was worked around; `unasked` are the questions that
    the single-device model could not answer, with its error. `cpu_seconds` is this rank's own computing time. `training` are
    the answers of a case that asks what a trainer does, the same on every rank.
    """

    rank: int
    comparisons: tuple[Comparison, ...] = ()
    failure: Failure | None = None
    divergence: Divergence | None = None
    refused: Failure | None = None
    unasked: Mapping[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    training: tuple[TrainingAnswer, ...] = ()

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def outcome_from(text: str) -> Outcome:
    """The outcome of `Outcome.dumps`."""
    data = json.loads(text)
    divergence = data["divergence"]
    return Outcome(
        rank=data["rank"],
        comparisons=tuple(Comparison(**comparison) for comparison in data["comparisons"]),
        failure=_failure(data["failure"]),
        divergence=Divergence(**divergence) if divergence else None,
        refused=_failure(data["refused"]),
        unasked=data["unasked"],
        cpu_seconds=data["cpu_seconds"],
        training=tuple(map(training_answer_from, data["training"])),
    )


def _failure(data: dict[str, Any] | None) -> Failure | None:
    if data is None:
        return None
    return Failure(**(data | {"source": Source(**data["source"]) if data["source"] else None}))


def failure_of(error: BaseException, *, stage: str, module: str, sharded: bool) -> Failure:
    """An exception as data: the first line of its message, and the last line of modeling code that it passed
    through."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None and _SCHEDULE.match(str(error).strip()):
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    message = lines[0] if len(lines[0]) <= 300 else lines[0][:297] + "..."
    kind = type(error).__name__
    return Failure(stage, kind, message, module, modeling_line(error), sharded, time.time(), _is_ours(error))


def _is_ours(error: BaseException) -> bool:
    """Whether the innermost frame that is not of torch or Python itself is in shardproof. What autograd runs is the backward of
    the model's own ops, whoever asked for it.

    A `ValueError` or `FloatingPointError` that shardproof raises itself is a plan or a model that it refuses.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if (
        isinstance(error, ValueError | FloatingPointError)
        and frames
        and Path(frames[-1].filename).is_relative_to(_OURS / "verify")
    ):
        return False
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path in {Path(__file__).parents[1] / name for name in _AROUND}:
            continue
        if frame.name == _ENGINE:
            return False
        if path.is_relative_to(_OURS):
            return True
        if not _below_all(path):
            return False
    return False


def _below_all(path: Path) -> bool:
    """Torch, Python's own library, and what has no file: whoever called them is responsible."""
    standard = path.is_relative_to(sysconfig.get_path("stdlib")) and not any(root in path.parts for root in _ROOTS)
    return standard or not path.exists() or any((root, "torch") in pairwise(path.parts) for root in _ROOTS)


def modeling_line(error: BaseException) -> Source | None:
    """The innermost frame in a file of modeling code (`modeling_*.py`, or the user's own), as a relative path."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        library = any(root in path.parts for root in _ROOTS) or path.is_relative_to(sysconfig.get_path("stdlib"))
        own = path.is_relative_to(_OURS)
        model = path.name.startswith("modeling_") and path.parent.name != "transformers"
        if model or not (library or own or not path.exists()):
            return Source(relative(path), frame.lineno or 0)
    return None


def relative(path: Path) -> str:
    """A path inside its package root; of any other file only the name, since reports hold no absolute paths."""
    for root in _ROOTS:
        if root in path.parts:
            return "/".join(path.parts[len(path.parts) - path.parts[::-1].index(root) :])
    return path.name


def worst(outcomes: Mapping[int, Outcome]) -> dict[tuple[str, str], Comparison]:
    """Per compared quantity and place, the rank with the largest error (a NaN counts as largest)."""
    found: dict[tuple[str, str], Comparison] = {}
    for outcome in outcomes.values():
        for comparison in outcome.comparisons:
            key = (comparison.what, comparison.place)
            if key not in found or not comparison.error <= found[key].error:
                found[key] = comparison
    return found
