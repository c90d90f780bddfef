"""How long a proof takes: against runs of the same plan in the same process, and against the number of layers.

Times are of the CPU, without imports: of this process, and of real ranks what one case more costs them, all ranks together.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from time import process_time

from rich.console import Console
from rich.progress import track
from rich.table import Table

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.loading.load import load
from shardproof.planner.twins.twin import twin
from shardproof.verify.proof.prove import prove
from shardproof.verify.run.inprocess import InProcess
from shardproof.verify.stages.case import Case

TYPES = ("llama", "gpt2", "qwen2_moe", "deepseek_v3")
DEEP, SHALLOW = 126, 8
TIMES = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds for one plan of one model: the proof, the ranks in this process, the ranks as processes of their own."""

    model: str
    proof: float
    inprocess: float
    ranks: float


@dataclass(frozen=True, slots=True)
class Depth:
    """Seconds to suggest and prove the same model with few and with many layers."""

    shallow: float
    deep: float

    @property
    def ratio(self) -> float:
        return self.deep / self.shallow


def main(types: Sequence[str], out: Path, *, tp: int) -> int:
    """Measure, print the table, write JSON."""
    console = Console(stderr=True)
    speeds = [_speed(name, tp) for name in track(types or TYPES, description="speed", console=console)]
    depth = _depth(tp)
    out.write_text(json.dumps({"plans": [asdict(speed) for speed in speeds], "depth": asdict(depth)}, indent=1))
    Console().print(_table(speeds))
    Console().print(
        f"llama, suggest and prove: {SHALLOW} layers {depth.shallow:.2f} s, {DEEP} layers {depth.deep:.2f} s, "
        f"ratio {depth.ratio:.2f}"
    )
    return 0


def _speed(name: str, tp: int) -> Speed:
    loaded = load(name)
    plan = suggest(loaded).plan
    case = Case(twin(loaded, tp=tp), plan, tp)
    with InProcess(tp) as ranks:
        ranks.check(
            case
        )  # the single-device model's answers are kept from here on; they are no part of the plan's time
        inprocess = _seconds(lambda: ranks.check(case))
    return Speed(name, _seconds(lambda: prove(loaded, plan, tp=tp)), inprocess, _more(case))


def _more(case: Case) -> float:
    """What `TIMES` cases more cost the ranks, each: their start and their imports are in both."""
    taken = []
    for cases in (1, 1 + TIMES):
        before = getrusage(RUSAGE_CHILDREN)
        confirm_cases((case,) * cases)
        after = getrusage(RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return (taken[1] - taken[0]) / TIMES


def _depth(tp: int) -> Depth:
    def both(layers: int) -> float:
        loaded = load("llama", overrides={"num_hidden_layers": str(layers)})
        return _seconds(lambda: prove(loaded, suggest(loaded).plan, tp=tp))

    both(SHALLOW)
    return Depth(both(SHALLOW), both(DEEP))


def _seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(TIMES):
        began = process_time()
        work()
        taken.append(process_time() - began)
    return median(taken)


def _table(speeds: Sequence[Speed]) -> Table:
    table = Table("model", "proof", "in process", "real ranks", "in process / proof", "real ranks / proof")
    for one in speeds:
        seconds = (f"{value:.2f} s" for value in (one.proof, one.inprocess, one.ranks))
        table.add_row(one.model, *seconds, f"{one.inprocess / one.proof:.1f}", f"{one.ranks / one.proof:.1f}")
    return table
