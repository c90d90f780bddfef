"""Which models are served: causal-LM types of Transformers, and models of our own with code in their checkpoint."""

import re
from pathlib import Path

from shardproof.planner.loading.load import LoadedModel, load

ROOT = Path(__file__).parents[2]

CUSTOM = {
    "ladder": "benchmarks/engines/models/ladder.py:LadderForCausalLM",
    "quill": "benchmarks/engines/models/quill.py:QuillForCausalLM",
    "tern": "docs/tutorial.md:TernForCausalLM",
    "combo": "examples/custom_model.py:ComboForCausalLM",
}
"""Models with code of their own, served as remote code; that of the tutorial lies in its first block of Python."""

FIRST = tuple(
    "hunyuan_v1_dense persimmon bitnet stablelm lfm2 llama gpt_neox phi qwen3 starcoder2 smollm3 olmo glm mistral seed_oss "
    "arcee gemma gemma2 cohere granite helium ernie4_5 exaone4 qwen2 nemotron jais2 apertus olmo2 cwm olmo3 phi3 opt biogpt "
    "gpt_bigcode gpt2 xglm gpt_oss modernbert-decoder gpt_neox_japanese gptj codegen glm4 ministral cohere2 nanochat "
    "internlm3 vaultgemma moshi jetmoe".split()
)
"""Served before the others."""


DIVISIBLE = {"bitnet": {"num_key_value_heads": "10"}}
"""Fields of types whose default heads no engine divides by two."""


def family(name: str, folder: Path) -> LoadedModel:
    """A model by its type, or by its name among our own; code that stands in a page is written to the folder."""
    if name not in CUSTOM:
        return load(name, overrides=DIVISIBLE.get(name))
    page, _, kind = CUSTOM[name].partition(":")
    file = ROOT / page
    if file.suffix == ".md":
        block = re.search(r"```python title=\"(modeling_\w+\.py)\"\n(.*?)```", file.read_text(), re.DOTALL)
        assert block is not None, "the tutorial has the model"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / block[1]
        file.write_text(block[2])
    return load(f"{file}:{kind}", trust_remote_code=True)
