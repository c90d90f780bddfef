"""Silence what Transformers logs while models are built."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR

import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Transformers' log, its progress bars and Python warnings, which would be about default configs and twins."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
