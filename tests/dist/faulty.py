"""Models whose forward kills its rank, or never ends; the single-device model runs."""

import os
import signal
import time

import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM


class KilledConfig(LlamaConfig):
    model_type = "killed_llama"


class Killed(LlamaForCausalLM):
    """Rank 1 is killed in mid-run."""

    config_class = KilledConfig

    def forward(self, input_ids=None, use_cache=None, **kwargs):  # type: ignore[no-untyped-def]  # as its base
        if getattr(self, "_tp_size", None) and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(input_ids=input_ids, use_cache=use_cache, **kwargs)


class StuckConfig(LlamaConfig):
    model_type = "stuck_llama"


class Stuck(LlamaForCausalLM):
    """Rank 0 never gives an answer."""

    config_class = StuckConfig

    def forward(self, input_ids=None, use_cache=None, **kwargs):  # type: ignore[no-untyped-def]  # as its base
        while getattr(self, "_tp_size", None) and dist.get_rank() == 0:
            time.sleep(0.1)
        return super().forward(input_ids=input_ids, use_cache=use_cache, **kwargs)


class LonelyConfig(LlamaConfig):
    model_type = "lonely_llama"


class Lonely(LlamaForCausalLM):
    """Rank 1 raises; rank 0 waits for it in a collective."""

    config_class = LonelyConfig

    def forward(self, input_ids=None, use_cache=None, **kwargs):  # type: ignore[no-untyped-def]  # as its base
        if getattr(self, "_tp_size", None) and dist.get_rank() == 1:
            raise RuntimeError("rank 1 has had enough")
        return super().forward(input_ids=input_ids, use_cache=use_cache, **kwargs)
