"""`python -m tests.bench mutants [--types llama,qwen2] [--out FILE]`, and so on."""

import argparse
import sys
from pathlib import Path

from tests.bench import mutants

BENCHMARKS = {"mutants": mutants.main}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument(
        "--types", default="", help="Transformers model types, comma-separated; all causal-LM types by default"
    )
    parser.add_argument("--out", type=Path, default=None, help="the JSON file; what it holds already is not run again")
    parser.add_argument("--tp", type=int, default=2)
    given = parser.parse_args(arguments)
    types = tuple(filter(None, given.types.split(",")))
    return BENCHMARKS[given.name](types, given.out or Path(f"{given.name}.json"), tp=given.tp)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
