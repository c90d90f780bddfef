"""`python -m benchmarks fuzz --pairs N --seed S`: random models and plans, the proof against real arithmetic of ranks as threads.

A model is a random list of steps (`tests.zoo.fuzz_model`), a plan a random choice of styles for its layers. Where the proof says
`proved` and the ranks differ, that is a false proof; `refuted` where they agree is a false accusation. Each failure is shrunk:
steps are left out as long as it stays a failure.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.verify.proof.prove import prove
from shardproof.verify.stages.case import Case
from tests.zoo.fuzz_model import STEPS

MODEL = "tests.zoo.fuzz_model:FuzzForCausalLM"
STYLES = {
    "layers.*.up": ("colwise", "colwise_gather_output", None),
    "layers.*.gate": ("colwise", "colwise_gather_output", None),
    "layers.*.down": ("rowwise", "rowwise_split_input", None),
    "layers.*.weight": ("colwise", None),
    "layers.*.bias": ("colwise", None),
    "layers.*": ("local_params", None, None),
    "head": ("colwise_gather_output", None),
}
"""Styles that a pattern may have in a random plan; None: no entry."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A model, by its steps, and a plan for it."""

    steps: tuple[str, ...]
    styles: tuple[tuple[str, str], ...]

    @property
    def plan(self) -> Plan:
        """The plan, all entries in the head class."""
        return Plan.from_json({"tp_plan": dict(self.styles)})


def pairs(count: int, seed: int) -> Iterator[Pair]:
    """So many random pairs, the same for the same seed. Most plans shard the feed-forward as a plan does; none names a part
    that no step reads, of which the proof abstains.
    """
    chance = random.Random(seed)
    for _ in range(count):
        steps = tuple(chance.choice(sorted(STEPS)) for _ in range(chance.randint(0, 3)))
        styles = {"layers.*.up": "colwise", "layers.*.gate": "colwise", "layers.*.down": "rowwise"}
        for pattern in chance.sample(sorted(STYLES), chance.randint(0, 2)):
            style = chance.choice(STYLES[pattern])
            styles.pop(pattern, None)
            if style is not None:
                styles[pattern] = style
        unread = {f"layers.*.{part}" for part in ("gate", "weight", "bias")} - {f"layers.*.{step}" for step in steps}
        yield Pair(steps, tuple(sorted((pattern, style) for pattern, style in styles.items() if pattern not in unread)))


def outcome(pair: Pair) -> tuple[str, str]:
    """The proof's verdict and that of the ranks."""
    model: LoadedModel = load(MODEL, overrides={"steps": ";".join(pair.steps)})
    proof = prove(model, pair.plan, tp=2)
    (run,) = confirm_cases((Case(model, pair.plan, 2),), timeout=60.0, engine="inprocess")
    undecided = any(finding.severity is Severity.UNDECIDED for finding in run.findings)
    return proof.verdict.value, "not decided" if undecided else run.verdict.value


def judged(pair: Pair) -> str:
    """What came of a pair: `false proof`, `false accusation`, `crash: ...`, or both verdicts, which do not contradict."""
    try:
        proved, ran = outcome(pair)
    except Exception as error:  # a crash of ours is a failure too
        return f"crash: {type(error).__name__}"
    if (proved, ran) == (Verdict.PROVED.value, Verdict.REFUTED.value):
        return "false proof"
    if (proved, ran) == (Verdict.REFUTED.value, Verdict.CONFIRMED.value):
        return "false accusation"
    return f"{proved}, {ran}"


def is_failure(found: str) -> bool:
    """Whether what came of a pair is a fault of ours."""
    return found.startswith(("false", "crash"))


def shrunk(pair: Pair, wrong: str) -> Pair:
    """The pair with as few steps and entries as fail in the same way."""
    for at in range(len(pair.steps)):
        fewer = Pair((*pair.steps[:at], *pair.steps[at + 1 :]), pair.styles)
        if judged(fewer) == wrong:
            return shrunk(fewer, wrong)
    for at in range(len(pair.styles)):
        fewer = Pair(pair.steps, (*pair.styles[:at], *pair.styles[at + 1 :]))
        if judged(fewer) == wrong:
            return shrunk(fewer, wrong)
    return pair


def main(count: int, seed: int, path: Path) -> int:
    """Try the pairs, print the counts, and write the failures; 1 where there is one."""
    console, counts, failures = Console(), Counter[str](), []
    for pair in track(list(pairs(count, seed)), description="pairs", console=Console(stderr=True)):
        wrong = judged(pair)
        counts[wrong] += 1
        if is_failure(wrong):
            small = shrunk(pair, wrong)
            failures.append({"failure": wrong, "steps": list(small.steps), "plan": dict(small.styles)})
            console.print(wrong, list(small.steps), dict(small.styles))
    path.write_text(json.dumps({"pairs": count, "seed": seed, "counts": counts, "failures": failures}, indent=2))
    console.print(dict(counts))
    return 1 if failures else 0
