"""A model repository's test: one line for each model and level. The fixture comes with the package.

pytest examples/test_with_the_plugin.py
"""

from pathlib import Path

from shardproof import load, suggest
from shardproof.launch.pytest_plugin import Checks

MODEL = f"{Path(__file__).with_name('custom_model.py')}:ComboForCausalLM"


def test_llamas_own_plan(shardproof: Checks) -> None:
    shardproof.proof("llama", tp=4)


def test_the_suggested_plan_of_our_model(shardproof: Checks) -> None:
    shardproof.proof(MODEL, plan=suggest(load(MODEL)).plan)
