# mypy: disable-error-code="no-any-return, no-untyped-call"
# Modeling code has Transformers' habits.
"""A small mixture of experts with one trait at a time, and layers that leave something for each other, for stages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, DynamicLayer

from tests.zoo.trait_models import Layer, TraitConfig, TraitForCausalLM, TraitModel, TraitPreTrained


class ExpertsConfig(TraitConfig):
    """With experts."""

    model_type = "tests_experts"
    num_experts: int = 4
    num_experts_per_tok: int = 2


class Experts(nn.Module):
    """Stacked experts, called with hidden states, expert ids and routing weights."""

    def __init__(self, config: ExpertsConfig, index: int) -> None:
        super().__init__()
        self.trait, self.num_experts = config.trait, config.num_experts
        self.last = index == config.num_hidden_layers - 1
        self.up = nn.Parameter(torch.empty(config.num_experts, config.intermediate_size, config.hidden_size))
        self.down = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, config.intermediate_size))
        if config.trait == "a factor for each expert":
            self.factor = nn.Parameter(torch.ones(config.num_experts))

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        match self.trait:
            case "all at once":
                return self.at_once(x, ids, weights)
            case "sorted, by counts":
                return self.sorted_by_counts(x, ids, weights)
            case "unique":
                return self.by_unique(x, ids, weights)
        if self.trait == "mean over tokens":
            x = x - x.mean(0, keepdim=True)
        if self.trait == "weights without gradient":
            weights = weights.detach()
        if self.trait == "last layer" and self.last:
            weights = weights.square()
        out = torch.zeros_like(x)
        for number in range(self.num_experts):
            token, slot = torch.where(ids == number)
            if self.trait == "capacity":
                token, slot = token[: len(x) // 2], slot[: len(x) // 2]
            made = F.linear(F.silu(F.linear(x[token], self.up[number])), self.down[number])
            if self.trait == "scaled by number":
                made = made * (1 + number)
            if self.trait == "a factor for each expert":
                made = made * self.factor[number]
            out = out.index_add(0, token, made * weights[token, slot, None])
        return out

    def one(self, number: Tensor | int, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.up[number])), self.down[number])

    def at_once(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        dense = ((ids[..., None] == torch.arange(self.num_experts, device=ids.device)) * weights[..., None]).sum(1)
        made = torch.einsum("tef,edf->etd", F.silu(torch.einsum("td,efd->tef", x, self.up)), self.down)
        return torch.einsum("etd,te->td", made, dense)

    def sorted_by_counts(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        order, first = ids.flatten().argsort(), 0
        out = torch.zeros_like(x)
        counts = torch.bincount(ids.flatten(), minlength=self.num_experts).tolist()
        for number, count in enumerate(counts[: self.num_experts]):
            chosen = order[first : first + count]
            token = chosen // ids.shape[1]
            out = out.index_add(0, token, self.one(number, x[token]) * weights.flatten()[chosen, None])
            first += count
        return out

    def by_unique(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for number in ids.unique():
            if number < self.num_experts:
                chosen = ids == number
                token = chosen.any(1)
                out[token] += self.one(number, x[token]) * (weights * chosen).sum(1)[token, None]
        return out


class Mixture(nn.Module):
    """Router and experts."""

    def __init__(self, config: ExpertsConfig, index: int) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config, index)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, ids = self.router(flat).softmax(-1).topk(self.chosen, -1)
        return self.experts(flat, ids, weights).view(x.shape)


class ExpertsModel(TraitModel):
    """The layers, with experts for their feed-forward."""

    config_class = ExpertsConfig

    def __init__(self, config: ExpertsConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.feed = Mixture(config, index)


class ExpertsForCausalLM(TraitForCausalLM):
    """With its head."""

    config_class = ExpertsConfig

    def __init__(self, config: ExpertsConfig) -> None:
        TraitPreTrained.__init__(self, config)
        self.model = ExpertsModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class Shelf:
    """What layers leave for each other, past their arguments."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.count = 0


class LeavingLayer(Layer):
    """A layer that leaves something on a shelf, or reads what another left."""

    def __init__(self, config: TraitConfig, index: int, shelf: Shelf) -> None:
        super().__init__(config, index, None)
        self.leaves, self.index, self.shelf = config.trait, index, shelf

    def forward(self, x: Tensor, cache: DynamicCache | None) -> Tensor:
        one_token = cache is not None and x.shape[1] == 1
        match self.leaves:
            case "a tensor on a shelf":
                x = self._left(x)
            case "a tensor on a shelf in training" if self.training:
                x = self._left(x)
            case "a tensor on a shelf for one token" if one_token:
                x = self._left(x)
            case "keys of the first layer" | "its own keys" if one_token:
                assert cache is not None
                entry = cache.layers[0 if self.leaves == "keys of the first layer" else self.index]
                assert isinstance(entry, DynamicLayer) and entry.keys is not None
                keys = entry.keys
                x = x + keys.mean((1, 2, 3))[:, None, None]
            case "a count on a shelf":
                self.shelf.count = 1 if self.index == 0 else self.shelf.count + 1
                x = x * (1 + 0.5 * self.shelf.count)
            case "its own index":
                x = x * (1 + 0.5 * self.index)
        return super().forward(x, cache)

    def _left(self, x: Tensor) -> Tensor:
        if self.index == 0:
            self.shelf.kept = [x]
        return x + self.shelf.kept[0] if self.index == 3 else x


class LeavingForCausalLM(TraitForCausalLM):
    """A model of layers that share a shelf."""

    def __init__(self, config: TraitConfig) -> None:
        super().__init__(config)
        shelf = Shelf()
        self.model.layers = nn.ModuleList(
            LeavingLayer(config, index, shelf) for index in range(config.num_hidden_layers)
        )
        self.post_init()
