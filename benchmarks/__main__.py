"""`python -m benchmarks mutants [--types llama,qwen2] [--out FILE]`, `python -m benchmarks zoo --levels proof`, and so on."""

import argparse
import sys
from pathlib import Path

from benchmarks import (
    adapters,
    balance,
    configs,
    contract,
    drift,
    faults,
    fuzz,
    guards,
    layouts,
    localize,
    mutants,
    pipeline_mutants,
    pipelines,
    rules,
    runtime,
    speed,
    trainers,
    training,
    twins,
    warm,
    weights,
    write,
)
from benchmarks.diffusion import bench as diffusion
from benchmarks.engines import bench as engines
from benchmarks.engines import traces
from benchmarks.hostile import bench as hostile
from benchmarks.others import bench as others
from benchmarks.packages import bench as packages
from benchmarks.quantised import bench as quantised
from benchmarks.versions import bench as versions
from benchmarks.zoo import bench as zoo

BENCHMARKS = {
    "adapters": adapters.main,
    "balance": balance.main,
    "configs": configs.main,
    "contract": contract.main,
    "deepspeed": trainers.deepspeed,
    "drift": drift.main,
    "faults": faults.main,
    "layouts": layouts.main,
    "nemo": trainers.nemo,
    "pipelines": pipelines.main,
    "rules": rules.main,
    "sglang": trainers.sglang,
    "speed": speed.main,
    "torchtitan": trainers.torchtitan,
    "traces": traces.main,
    "training": training.main,
    "twins": twins.main,
    "warm": warm.main,
    "weights": weights.main,
    "write": write.main,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    own = (
        "diffusers",
        "engines",
        "fuzz",
        "guards",
        "hostile",
        "localize",
        "mutants",
        "others",
        "packages",
        "pipeline-mutants",
        "quantised",
        "runtime",
        "versions",
        "zoo",
    )
    parser.add_argument("name", choices=(*BENCHMARKS, *own))
    parser.add_argument(
        "--types", default="", help="Transformers model types, comma-separated; all causal-LM types by default"
    )
    parser.add_argument("--out", type=Path, default=None, help="the JSON file; what it holds already is not run again")
    parser.add_argument("--tp", type=int, default=None, help="tensor-parallel degree; 2, and 8 for configs")
    parser.add_argument("--levels", default="proof,run", help="zoo, versions: proof, run (ranks as threads), ranks")
    parser.add_argument(
        "--redo", choices=("", "failed", "all"), default="", help="zoo, others, mutants, engines: these again"
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=None,
        help="zoo, others, engines, mutants, pipeline-mutants, runtime, versions: also write the page of the docs",
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="mutants, localize: at most this many of each plan; others: types"
    )
    parser.add_argument("--seed", type=int, default=0, help="mutants, fuzz, hostile: which ones; others: the order")
    parser.add_argument("--pairs", type=int, default=100, help="fuzz: how many models with a plan; hostile: inputs")
    parser.add_argument(
        "--time",
        type=float,
        default=0.0,
        help="mutants, others, engines: start no further type after this many seconds",
    )
    parser.add_argument("--plans", default="ours,shipped", help="engines: whose plans are served")
    parser.add_argument(
        "--only",
        default="",
        help="mutants: those whose name contains this, again; guards: these; versions: these, or newest",
    )
    given = parser.parse_args(arguments)
    types = tuple(filter(None, given.types.split(",")))
    if given.name == "zoo":
        levels = tuple(given.levels.split(","))
        return zoo.main(types, given.out or Path("zoo.jsonl"), levels=levels, redo=given.redo, page_at=given.page)
    if given.name == "versions":
        numbers, levels = tuple(filter(None, given.only.split(","))), tuple(given.levels.split(","))
        folder = given.out or Path("versions")
        return versions.main(types, folder, versions=numbers, levels=levels, page_at=given.page)
    if given.name == "others":
        asked = others.Asked(given.limit, given.seed, given.time, given.redo)
        return others.main(types, given.out or Path("others.jsonl"), asked=asked, page_at=given.page)
    if given.name == "diffusers":
        asked = others.Asked(given.limit, given.seed, given.time, given.redo)
        return diffusion.main(types, given.out or Path("diffusers.jsonl"), asked=asked, page_at=given.page)
    if given.name == "packages":
        asked = others.Asked(given.limit, given.seed, given.time, given.redo)
        return packages.main(types, given.out or Path("packages.jsonl"), asked=asked, page_at=given.page)
    if given.name == "pipeline-mutants":
        return pipeline_mutants.main(
            types, given.out or Path("pipeline-mutants.jsonl"), limit=given.limit, page_at=given.page
        )
    if given.name == "runtime":
        return runtime.main(types, given.out or Path("runtime.json"), page_at=given.page)
    if given.name == "fuzz":
        return fuzz.main(given.pairs, given.seed, given.out or Path("fuzz.json"))
    if given.name == "hostile":
        return hostile.main(given.pairs, given.seed, given.out or Path("hostile.json"))
    if given.name == "guards":
        return guards.main(given.only, given.out or Path("guards.json"))
    if given.name == "engines":
        plans = tuple(given.plans.split(","))
        path, redo = given.out or Path("engines.jsonl"), given.redo == "all"
        return engines.main(types, path, plans=plans, seconds=given.time, redo=redo, page_at=given.page)
    if given.name == "quantised":
        return quantised.main(types, given.out or Path("quantised.jsonl"), tp=given.tp or 2, page_at=given.page)
    degree = given.tp or (8 if given.name == "configs" else 2)
    if given.name == "mutants":
        options = mutants.Options(degree, given.limit, given.seed, given.time, given.only, given.redo == "failed")
        return mutants.main(types, given.out or Path("mutants.jsonl"), options=options, page_at=given.page)
    if given.name == "localize":
        return localize.main(types, given.out or Path("localize.json"), tp=degree, limit=given.limit)
    return BENCHMARKS[given.name](types, given.out or Path(f"{given.name}.json"), tp=degree)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
