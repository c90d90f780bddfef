"""What one device answers, as pipeline stages are asked: a microbatch at a time, and with the forms of every call."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from planner.frontend.inputs import caching
from verify.dynamic.cases import DECODED, accepts, inputs
from verify.dynamic.compare import LIMIT, relative_error
from verify.dynamic.questions import logits
from verify.dynamic.stages import Layout, Record, recorded


@dataclass(slots=True)
class Answers:
    """All that is compared; `gradients` are summed over the microbatches, `steps` are the calls of prefill and decode."""

    logits: list[torch.Tensor] = field(default_factory=list)
    padded: list[torch.Tensor] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    record: Record = field(default_factory=Record)
    steps: list[Record] = field(default_factory=list)
    decoded: torch.Tensor | None = None


def batch(model: nn.Module, microbatches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of all microbatches, one below the other; each microbatch has a padded row."""
    drawn = [inputs(model, seed=seed) for seed in range(microbatches)]
    return torch.cat([one.ids for one in drawn]), torch.cat([one.mask for one in drawn])


def loss_of(given: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of the next token; a mean square where the model gives no logits."""
    if given.ndim == 3 and given.shape[-1] > int(ids.max()):
        return nn.functional.cross_entropy(given[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return given.square().mean()


def answers(
    single: PreTrainedModel, layout: Layout, ids: torch.Tensor, mask: torch.Tensor, microbatches: int
) -> Answers:
    """One device's answers to all microbatches; its gradients are taken away again."""
    want = Answers()
    more = caching(single, False)
    for tokens, seen in zip(ids.chunk(microbatches), mask.chunk(microbatches), strict=True):
        with recorded(single, layout.named) as want.record:
            given = logits(single, input_ids=tokens, **more)
        loss = loss_of(given, tokens)
        loss.backward()
        want.logits.append(given.detach())
        want.losses.append(loss.detach())
        if accepts(single, "attention_mask"):
            with torch.no_grad():
                want.padded.append(logits(single, input_ids=tokens, attention_mask=seen, **more))
    for name, value in single.named_parameters():
        want.gradients[name] = torch.zeros_like(value) if value.grad is None else value.grad
    if accepts(single, "past_key_values") and accepts(single, "use_cache"):
        _decode_alone(single, layout, ids, want)
    return want


def steps(ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The prompt, then one token after the other."""
    yield ids[:, :-DECODED]
    yield from ids[:, -DECODED:].split(1, dim=1)


@torch.no_grad()
def _decode_alone(single: PreTrainedModel, layout: Layout, ids: torch.Tensor, want: Answers) -> None:
    """Decode on one device. What stages must give is the full recompute, unless the model itself decodes otherwise."""
    cache, given = None, []
    for tokens in steps(ids):
        with recorded(single, layout.named) as record:
            try:
                output = single(
                    input_ids=tokens, use_cache=True, **({} if cache is None else {"past_key_values": cache})
                )
            except RuntimeError:  # a model that does not decode token by token: there is nothing to ask of stages
                return
        cache = output.get("past_key_values")
        if cache is None:
            return
        given.append(output[0])
        want.steps.append(record)
    decoded, recomputed = torch.cat(given, dim=1), torch.cat(want.logits)
    if (
        decoded.shape != recomputed.shape
    ):  # a model that does not decode token by token: there is nothing to ask of stages
        return
    want.decoded = recomputed if relative_error(decoded, recomputed) <= LIMIT else decoded
