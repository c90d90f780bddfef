"""The small model that the experiments run: on the CPU, in float64, with random weights, built for each experiment.

What the experiments ask does not depend on sizes, so that a twin answers them; a model that is small already is run as it is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shardproof.planner.inputs.numbers import vocabulary
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.small_runs import LARGEST
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.clients.contract.experiments.client_attention import AttentionRecorder, paths_in

SMALL_ENOUGH = 3_000_000
"""The most parameters of a model that is run as it is; a twin of it would take longer to find than to run."""
DEEPEST = 8
"""The most layers that a twin keeps: faults may lie in one layer alone."""
NEVER = 1 << 20
"""A window, in tokens, that hides nothing."""
WINDOW = 64
"""The widest attention window, in tokens, that an input of the experiments exceeds."""


class TrialError(RuntimeError):
    """There is no small model to run; the message says why."""


@dataclass(frozen=True)
class Trial:
    """A small model (`loaded`), its weights, and the path of its base model.

    `window` is the number of tokens that an input has to exceed to show a sliding window.
    """

    loaded: LoadedModel
    state: Mapping[str, Tensor]
    prefix: str
    window: int
    vocabulary: int
    text: PreTrainedConfig
    """The config of the language model, as the constructor of the model leaves it."""
    dtype: torch.dtype = torch.float64

    @property
    def tolerance(self) -> float:
        """The relative difference above which two answers differ. Many models compute parts in float32, of about 1e-7."""
        return 1e-5 if self.dtype is torch.float64 else 3e-4

    def built(self, attention: str | None) -> nn.Module:
        """The head model with the weights of the trial. `attention` is set on the config of the language model before it is
        built, as engines do; None leaves the choice to Transformers.
        """
        config = deepcopy(self.loaded.config)
        if attention is not None:
            config.get_text_config()._attn_implementation = attention
        model = build(replace(self.loaded, config=config), device="cpu", dtype=self.dtype)
        model.load_state_dict(self.state)
        return model

    def base(self, model: nn.Module) -> nn.Module:
        """The base model of a head model of this trial."""
        return model.get_submodule(self.prefix)


def trial_of(loaded: LoadedModel, built: nn.Module, *, runs: Callable[[Trial], object]) -> Trial:
    """A small model like `loaded`; `built` is `loaded` on the meta device.

    It is in float64 where `runs` does not raise on that, else in float32: some code is written for one dtype.

    Raises:
        TrialError: no small model builds, or its constructor needs weights that cannot be set.
    """
    try:
        with quiet():
            small = loaded if _runs_as_it_is(loaded, built) else _twin(loaded)
            small = replace(small, config=deepcopy(small.config))
            if not _shows(loaded):
                small.config.get_text_config().sliding_window = NEVER
            torch.manual_seed(0)
            model = build(small, device="cpu", dtype=torch.float64)
            state = random_state(model)
    except TwinError as error:
        raise TrialError(str(error)) from error
    except Exception as error:  # whatever the constructor of custom code raises
        raise TrialError(f"{type(error).__name__}: {error}") from error
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    text = config.get_text_config()
    width = field_of(text, "sliding_window")
    window = width if isinstance(width, int) and 0 < width <= WINDOW else 0
    trial = Trial(small, state, base_prefix(model), window, vocabulary(model), text)
    try:
        runs(trial)
    except RuntimeError:  # tensors of two dtypes
        return replace(trial, dtype=torch.float32)
    except Exception:  # another reason, which the experiments meet again
        return trial
    return trial


def _shows(loaded: LoadedModel) -> bool:
    """Whether the window of the config is narrower than the longest sequence of the model."""
    text = loaded.config.get_text_config()
    window, longest = field_of(text, "sliding_window"), field_of(text, "max_position_embeddings")
    return not (isinstance(window, int) and isinstance(longest, int) and window >= longest)


def _runs_as_it_is(loaded: LoadedModel, built: nn.Module) -> bool:
    window = field_of(loaded.config.get_text_config(), "sliding_window")
    small = sum(parameter.numel() for parameter in built.parameters()) <= SMALL_ENOUGH
    return small and not (isinstance(window, int) and window > WINDOW and _shows(loaded))


def _twin(loaded: LoadedModel) -> LoadedModel:
    layers = field_of(loaded.config.get_text_config(), "num_hidden_layers")
    deep = layers if isinstance(layers, int) and layers <= DEEPEST else 4
    return twin(loaded, tp=1, pp=max(1, deep // 2))


Attention = Callable[..., tuple[Tensor, Tensor | None]]
MaskMaker = Callable[..., Tensor | None]


@contextmanager
def registered(name: str, function: Attention, *, masks: MaskMaker | None = None) -> Iterator[None]:
    """An attention function in Transformers' registry for as long as the block runs; what had the name before is put back.

    With `masks` the masking functions of Transformers make masks for it (`eager_mask` makes those of eager attention); without,
    they make none, as for the attention of every engine.
    """
    functions, makers = ALL_ATTENTION_FUNCTIONS._global_mapping, ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    before = functions.get(name), makers.get(name)
    functions[name] = function
    makers.pop(name, None)
    if masks is not None:
        makers[name] = masks
    try:
        yield
    finally:
        for table, held in zip((functions, makers), before, strict=True):
            table.pop(name, None)
            if held is not None:
                table[name] = held


def built_with(trial: Trial, name: str, recorder: AttentionRecorder, *, masks: MaskMaker | None = None) -> nn.Module:
    """A model that is to run with `recorder` under a name; its constructor finds it there already, and may keep it."""
    with registered(name, recorder, masks=masks):
        model = trial.built(name)
    recorder.paths.update(paths_in(model))
    return model


made_mask = eager_mask
"""The additive mask of eager attention, `(rows, 1, queries, keys)`."""


def raised_without_a_cache(loaded: LoadedModel, built: nn.Module) -> Exception | None:
    """What the base model of `loaded` raises without a cache, as engines call it, where it runs with one.

    None where it runs without, fails for another reason, or is no small model; `built` is the model on the meta device.
    """
    if sum(parameter.numel() for parameter in built.parameters()) > LARGEST:
        return None
    with quiet(), torch.no_grad():
        model = build(loaded, device="cpu").eval()
        base, ids = model.get_submodule(base_prefix(model)), torch.ones(1, 4, dtype=torch.long)
        try:
            base(input_ids=ids, use_cache=False)
        except Exception as error:  # whatever the model's code raises
            try:
                base(input_ids=ids, use_cache=True, past_key_values=DynamicCache())
            except Exception:  # it fails for another reason
                return None
            return error
    return None
