"""How far a symbolic trace gets in a forward."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shardproof.verify.clients.vllm.symbolic_trace import Traced, traced


class Attending(nn.Module):
    """Attention of one projection before and one after."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = PreTrainedConfig(), 0, 8
        self.config._attn_implementation = "sdpa"
        self.into, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def heads(self, hidden_states: torch.Tensor) -> torch.Tensor:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        return self.into(hidden_states).view(shape).transpose(1, 2)  # type: ignore[no-any-return]  # a module's call


class LooksUp(Attending):
    def forward(self, hidden_states: torch.Tensor, past_key_values: object = None, **kwargs: object) -> torch.Tensor:
        one = self.heads(hidden_states)
        if past_key_values is not None:
            one = one * 2
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, print)
        mixed, _ = attend(self, one, one, one, None, **kwargs)
        return self.out(mixed.reshape(*hidden_states.shape[:-1], -1))  # type: ignore[no-any-return]


class Indexes(Attending):
    def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        one = self.heads(hidden_states)
        mixed, _ = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation](self, one, one, one, None, **kwargs)
        return self.out(mixed.reshape(*hidden_states.shape[:-1], -1))  # type: ignore[no-any-return]


class Branches(Attending):
    def forward(self, hidden_states: torch.Tensor, loud: bool = False) -> torch.Tensor:
        one = self.into(hidden_states)
        return self.out(one * 2 if loud else one)  # type: ignore[no-any-return]


class Computes(Attending):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.silu(self.into(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "children", "finished"),
    [
        (LooksUp, {"into", "out"}, True),
        (Indexes, {"into"}, False),
        (Branches, {"into"}, False),
        (Computes, {"into", "out"}, True),
    ],
)
def test_a_trace_ends_where_symbols_cannot_go(kind: type[Attending], children: set[str], finished: bool) -> None:
    module = kind()
    found = traced(module)
    assert found == Traced(frozenset(children), finished)
    assert module.config._attn_implementation == "sdpa"
