"""What custom code of Transformers 4 runs into with Transformers 5, and the edit that mends it.

Each row was seen in published models and read from transformers 5.23.0; a test raises each of them.
"""

import re
import traceback
from dataclasses import dataclass

from shardproof.planner.ir.errors import innermost, reason


@dataclass(frozen=True, slots=True)
class VersionBreak:
    """`error` is looked for in an exception, `line` in the source line that raised it; `edit` is what to write instead."""

    error: str
    edit: str
    line: str = ""


BREAKS = (
    VersionBreak(
        r"KeyError: '(type|rope_type|factor)'",
        'Transformers 5 keeps the rotary settings in config.rope_parameters; read config.rope_parameters["rope_type"].',
        line=r"rope_scaling|rope_parameters",
    ),
    VersionBreak(
        r"'list' object has no attribute 'keys'",
        "Its _tied_weights_keys is a list; Transformers 5 wants a dictionary from each tied name to its source.",
    ),
    VersionBreak(
        r"is_torch_fx_(available|proxy)",
        "Transformers 5 has no is_torch_fx_available; take the import away, and the branch that asks it.",
    ),
    VersionBreak(
        r"no attribute 'get_head_mask'",
        "Transformers 5 has no head masks; take the call of get_head_mask away, and head_mask with it.",
    ),
    VersionBreak(
        r"tie_weights\(\) got an unexpected keyword argument",
        "Transformers 5 calls tie_weights(missing_keys=..., recompute_mapping=...); "
        "take the class's own tie_weights away, or give it **kwargs and pass them on.",
    ),
    VersionBreak(
        r"cannot import name 'OutputRecorder'",
        "Transformers 5 has it elsewhere; write: from transformers.utils.output_capturing import OutputRecorder.",
    ),
    VersionBreak(
        r"create_\w*mask\w*\(\) got an unexpected keyword argument '(input_embeds|cache_position)'",
        "Transformers 5 names the argument inputs_embeds, and takes no cache_position; position_ids may be given instead.",
    ),
    VersionBreak(
        r"Config' object has no attribute '(max_length|min_length|num_beams|do_sample|temperature|top_k|top_p)'",
        "Transformers 5 keeps what generation needs in generation_config; read it from self.generation_config.",
    ),
    VersionBreak(
        r"no attribute '(from_legacy_cache|to_legacy_cache)'",
        "Transformers 5 has no tuples of keys and values; build DynamicCache(config=config) where there is no cache.",
    ),
    VersionBreak(
        r"no attribute '(get_usable_length|get_max_cache_shape|seen_tokens)'",
        "Transformers 5 caches have get_seq_length(layer_idx) and get_max_length() instead.",
    ),
    VersionBreak(
        r"no attribute 'all_tied_weights_keys'",
        "Transformers 5 sets it in post_init; end the class's __init__ with self.post_init().",
    ),
    VersionBreak(
        r"No module named 'flash_attn|not found in your environment: .*flash_attn",
        "The code imports flash_attn unasked; take the import away, and call ALL_ATTENTION_FUNCTIONS, which finds it by itself.",
    ),
)


def version_advice(error: BaseException) -> str:
    """The edit that mends an error of code written for Transformers 4, after a space; empty where no row fits."""
    frames = traceback.extract_tb(innermost(error).__traceback__)
    line = (frames[-1].line or "") if frames else ""
    for row in BREAKS:
        if re.search(row.error, reason(error)) and re.search(row.line, line):
            return f" {row.edit} `plan port FILE` shows such edits."
    return ""
