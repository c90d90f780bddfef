"""Random numbers that modeling code draws past torch: from the generators of Python and of numpy."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

DRAWN_PAST_TORCH = "random numbers of Python or numpy: every rank is taken to draw the same ones, from one seed"


def generators() -> tuple[object, ...]:
    """The state of both generators; equal to that of another moment where nothing was drawn in between."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return (random.getstate(), kind, bytes(np.asarray(keys)), *rest)


def seed_generators(seed: int) -> None:
    """Both generators as a script that seeds them begins."""
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Both generators go on afterwards as if nothing had been drawn."""
    own, numpys = random.getstate(), np.random.get_state(legacy=True)
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)
