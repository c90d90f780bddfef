"""What one device and ranks compute from a checkpoint through Transformers' own loading: `torchrun on_ranks.py FOLDER`.

Prints one line of JSON for each plan, from the first rank that has something to say.
"""

import copy
import json
import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

LIMIT = 1e-4
"""Relative, in float32: what rounding and another order of sums leave."""


def logits(model: Any) -> Tensor:
    """Of two rows of twelve tokens."""
    ids = torch.arange(24).reshape(2, 12) * 7 % 251
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


def told(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def main(folder: str, plans: tuple[str, ...]) -> None:
    """Ask one device, and then ranks with each plan: the model's own, or nothing but its head."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    try:
        want = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
        if not bool(want.isfinite().all()):
            raise ArithmeticError("its logits are not finite")
    except Exception as error:
        if rank == 0:
            print("\n" + json.dumps({"alone": told(error)}), flush=True)
        return
    dist.init_process_group("gloo")
    for plan in plans:
        config = AutoConfig.from_pretrained(folder)
        if plan == "head":
            config.base_model_tp_plan = {}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=copy.deepcopy(config),
                dtype=torch.float32,
                distributed_config=DistributedConfig(tp_size=dist.get_world_size()),
            )
            got = logits(model)
            off = float((got - want).norm() / want.norm())
        except Exception as raised:
            print("\n" + json.dumps({"plan": plan, "raises": told(raised)}), flush=True)
            time.sleep(2)
            os._exit(1)
        apart = [torch.zeros(()) for _ in range(dist.get_world_size())]
        dist.all_gather(apart, torch.tensor(off))
        if rank == 0:
            print("\n" + json.dumps({"plan": plan, "error": max(map(float, apart))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], tuple(sys.argv[2:]))
