"""Large published configs: suggest and prove each as a user would, and what the whole process costs.

`python -m benchmarks configs [--types llama-3.1-405b,...] [--tp 8] [--out FILE]`. Every config of `examples/configs` is given
to the command in a process of its own. Time is the wall clock from start to end, with the processor's time beside it (on a busy
machine the wall clock says little), memory the largest resident set. Where `--tp` is no legal degree, the largest one below it
is proved.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "examples" / "configs"
COMMAND = (sys.executable, "-c", "from shardproof.launch.cli import main; main()")
HEAD = f"{'config':<18} {'tp':>2} {'verdict':<10} {'entries':>7} {'sharded':>9} {'seconds':>8} {'cpu s':>6} {'GB':>5}  degrees"


@dataclass(frozen=True, slots=True)
class Measured:
    """One config: times and `gigabytes` (10^9 bytes) are of the whole process, `sharded` the share of bytes in percent."""

    config: str
    tp: int
    verdict: str
    entries: int
    sharded: float
    degrees: tuple[int, ...]
    seconds: float
    processor_seconds: float
    gigabytes: float
    message: str = ""

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.degrees)) if len(self.degrees) < 20 else f"{len(self.degrees)} of them"
        counts = (
            f"{self.entries:>7} {self.sharded:>7} % {self.seconds:>8} {self.processor_seconds:>6} {self.gigabytes:>5}"
        )
        return f"{self.config:<18} {self.tp:>2} {self.verdict:<10} {counts}  {shown}  {self.message}".rstrip()


def measure(path: Path, *, tp: int) -> Measured:
    """Suggest and prove one config at one degree."""
    arguments = ["suggest", str(path), "--tp", str(tp), "--format", "json", "--quiet"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.monotonic()
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=out, stderr=err, env=environment, cwd=CONFIGS.parents[1]
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = round(time.monotonic() - began, 1)
        out.seek(0)
        err.seek(0)
        text, errors = out.read(), err.read().strip().splitlines()
    cost = (seconds, round(used.ru_utime + used.ru_stime, 1), round(used.ru_maxrss * 1024 / 1e9, 2))
    if not text:
        return Measured(path.stem, tp, "none", 0, 0.0, (), *cost, (errors or ["no answer"])[-1])
    data = json.loads(text)
    styles = {**data["plan"].get("base_model_tp_plan", {}), **data["plan"].get("tp_plan", {})}
    message = next((finding["message"] for finding in data["findings"]), "")
    share = round(100 * data["sharded_fraction"], 1)
    return Measured(path.stem, tp, data["verdict"], len(styles), share, tuple(data["degrees"]), *cost, message)


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Measure the configs named, or all; print a row each, write them as JSON. 1 where one is not proved."""
    rows: list[Measured] = []
    print(HEAD)
    for path in sorted(CONFIGS.glob("*.json")):
        if types and path.stem not in types:
            continue
        row = measure(path, tp=tp)
        if row.verdict != "proved" and (lower := [degree for degree in row.degrees if 1 < degree < tp]):
            row = measure(path, tp=lower[-1])
        rows.append(row)
        print(row, flush=True)
        out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.verdict == "proved" for row in rows) else 1
