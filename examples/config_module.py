"""A config module that carries its plan, and the three steps that wrote it: suggest, prove, confirm.

    python examples/config_module.py

prints the plan that the class below carries; run it again after a change to the model, and paste.
"""

from pathlib import Path
from pprint import pprint

from custom_model import ComboConfig

from shardproof import confirm, load, prove, suggest

MODEL = f"{Path(__file__).with_name('custom_model.py')}:ComboForCausalLM"


class PlannedComboConfig(ComboConfig):
    """The config as it is published: with the plan that `main` printed."""

    base_model_tp_plan = {
        "tokens": "embedding_rowwise",
        "places": "embedding_rowwise",
        "blocks.*.widen": "colwise",
        "blocks.*.shrink": "rowwise",
        "blocks.*.mixer.stem": "colwise",
        "blocks.*.mixer.fuse": "rowwise",
    }


def main() -> None:
    """Infer the plan from the computation, prove it at two ranks, confirm it on two ranks, print it."""
    model = load(MODEL)
    suggestion = suggest(model)
    print(f"right at {', '.join(map(str, suggestion.degrees))} ranks; {suggestion.sharded_fraction:.0%} sharded")
    for result in (prove(model, suggestion.plan, tp=2), confirm(model, suggestion.plan, tp=2)):
        print(f"{result.level}: {result.verdict}")
    pprint(suggestion.plan.to_json(), sort_dicts=False)


if __name__ == "__main__":  # the ranks import this file too
    main()
