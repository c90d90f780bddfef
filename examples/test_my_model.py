"""A unit test that keeps a model's plan right: one line of assertion.

pytest examples/test_my_model.py
"""

from shardproof import load, prove, suggest

MODEL = "llama"


def test_the_plan_is_right_on_two_ranks() -> None:
    assert prove(load(MODEL), suggest(MODEL).plan, tp=2).verdict == "proved"
