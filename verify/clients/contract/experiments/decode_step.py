"""Does a token that is run alone, as in decoding, stand where its position says?

An engine decodes one token at a time, with its position in `position_ids`; the tokens before it are in the attention's cache.
In the first layer the query and the key of a token depend on the token and its position alone. So they are the same as in the
run of the whole sequence, unless the model counts positions by itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shardproof.verify.clients.contract.experiments.client_attention import (
    AttentionCall,
    AttentionRecorder,
    as_rows,
    attend,
    paths_in,
)
from shardproof.verify.clients.contract.experiments.engine_run import Prompt, gap, positions_of
from shardproof.verify.clients.contract.experiments.own_function import spec_of
from shardproof.verify.clients.contract.experiments.trial import Trial, registered

NAME = "shardproof_step"


def one_step(trial: Trial, prompt: Prompt) -> float:
    """The relative difference of the last token's first query and key, alone and in its sequence. Raises whatever the model
    raises; 0 where the attention is not called.
    """
    row = max(prompt.rows, key=lambda one: one.shape[1])
    positions = positions_of(trial, (row.shape[1],))
    whole = _calls(trial, row, positions)
    alone = _calls(trial, row[:, -1:], positions[..., -1:])
    if not whole or not alone or whole[0].path != alone[0].path:
        return 0.0
    pairs = ((getattr(alone[0], name), getattr(whole[0], name)) for name in ("query", "key"))
    return max(gap(one, other[:, :, -1:]) for one, other in pairs)


def _calls(trial: Trial, tokens: Tensor, positions: Tensor) -> Sequence[AttentionCall]:
    def answer(call: AttentionCall) -> Tensor:
        return as_rows(attend(call.query, call.key, call.value, spec_of(call)))

    with registered(NAME, AttentionRecorder({}, answer)):
        model = trial.built(NAME)
    recorder = AttentionRecorder(paths_in(model), answer)
    with registered(NAME, recorder), torch.no_grad():
        trial.base(model)(
            input_ids=tokens, inputs_embeds=None, use_cache=False, position_ids=positions, return_dict=False
        )
    return recorder.calls
