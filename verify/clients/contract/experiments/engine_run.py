"""Run the base model as an engine does, and as Transformers does, on the same tokens.

An engine runs many sequences as one row of tokens, with `position_ids` that start again at each, without a cache and without a
mask. Source: vLLM 0.32.0, `vllm/model_executor/models/transformers/base.py` (`Base.forward`); SGLang 0.5.23,
`sglang/srt/models/transformers.py` (`_run_hf_backbone`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shardproof.planner.inputs.example import caching
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.verify.clients.contract.experiments.trial import Trial

LENGTHS = (5, 11, 3)
"""Tokens of the sequences that are run side by side."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens of several sequences in one row, `(1, tokens)`, and the length of each."""

    tokens: Tensor
    bounds: tuple[int, ...]

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Each sequence alone, `(1, tokens)`."""
        return tuple(torch.split(self.tokens, list(self.bounds), dim=1))


def prompt_of(trial: Trial) -> Prompt:
    """Sequences of random tokens; the middle one exceeds the window of the model."""
    bounds = (LENGTHS[0], max(LENGTHS[1], trial.window + 3), LENGTHS[2])
    generator = torch.Generator().manual_seed(1)
    special = {value for name, value in vars(trial.loaded.config).items() if "token" in name and isinstance(value, int)}
    plain = torch.tensor([token for token in range(trial.vocabulary) if token not in special] or [0])
    return Prompt(plain[torch.randint(len(plain), (1, sum(bounds)), generator=generator)], bounds)


def positions_of(trial: Trial, bounds: tuple[int, ...]) -> Tensor:
    """Positions that start again at each sequence: `(1, tokens)`, and `(3, 1, tokens)` for rotary sections."""
    row = torch.cat([torch.arange(length) for length in bounds])[None]
    sections = "mrope_section" in str(field_of(trial.text, "rope_parameters"))
    return row.expand(3, 1, -1) if sections else row


class OutputFormError(TypeError):
    """The base model's first output is not what an engine takes for the hidden states."""


def hidden_states(output: object) -> Tensor:
    """What an engine takes from the base model: the first row of its first output, `(tokens, width)`.

    Raises:
        OutputFormError: that is no tensor of this form.
    """
    first = output[0] if isinstance(output, tuple | list) or hasattr(output, "to_tuple") else None  # type: ignore[index]  # a ModelOutput is indexed too
    if not isinstance(first, Tensor) or first.ndim != 3:
        raise OutputFormError(
            f"the base model returns {type(output).__name__}, whose first item is no (1, tokens, width)"
        )
    return first[0]


def run_as_engine(
    trial: Trial, model: nn.Module, tokens: Tensor, bounds: tuple[int, ...], keywords: Mapping[str, object]
) -> Tensor:
    """The hidden states of the base model, `(tokens, width)`, as an engine calls it. Raises whatever the model raises."""
    with torch.no_grad():
        made = trial.base(model)(
            input_ids=tokens,
            inputs_embeds=None,
            use_cache=False,
            position_ids=positions_of(trial, bounds),
            return_dict=False,
            **keywords,
        )
    return hidden_states(made)


def run_alone(trial: Trial, model: nn.Module, prompt: Prompt) -> Tensor:
    """The hidden states of each sequence run alone, side by side: `(tokens, width)`.

    Without a cache, or with one where the model does not run without.
    """
    base = trial.base(model)
    with torch.no_grad():
        try:
            made = [hidden_states(base(input_ids=row, **caching(base, False))) for row in prompt.rows]
        except OutputFormError:
            raise
        except Exception:  # a model that has to have a cache
            made = [hidden_states(base(input_ids=row)) for row in prompt.rows]
    return torch.cat(made)


def gap(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value that is wanted."""
    if found.shape != wanted.shape:
        return float("inf")
    size = wanted.abs().max().item() or 1.0
    worst = ((found.double() - wanted.double()).abs().max() / size).item()
    return worst if worst == worst else float("inf")
