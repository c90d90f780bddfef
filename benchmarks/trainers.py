"""A trainer itself beside the proof in its dialect: `python -m benchmarks deepspeed`, `nemo`, `torchtitan`, `sglang`.

`SHARDPROOF_DEEPSPEED_PYTHON`, `SHARDPROOF_NEMO_PYTHON` and so on name the interpreters that they are installed in; Transformers
should be of the same version there and here. Every type is trained for one step, at small sizes in float32, on two ranks: in
DeepSpeed by the plan that is suggested for it, in NeMo AutoModel by the plan that the model carries and by the suggested one; and
once by that plan without one entry. torchtitan reads no plan, and is run as it is. SGLang does not train: its reader's forward is
compared, by the same plans as in NeMo.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import CONFIG_MAPPING

from shardproof.launch.clients.checkpoint import write_checkpoint
from shardproof.launch.clients.client_ranks import ClientRanks, ClientStep
from shardproof.launch.clients.vllm_engine import LIMIT
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Finding, Severity, Verdict
from shardproof.planner.ir.plan import Edit, Plan
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.verify.clients.compile import compile_for
from shardproof.verify.clients.contract.served import check_served
from shardproof.verify.clients.dialect import Reader
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect

TYPES = tuple(
    "llama qwen3 gemma phi gpt_neox olmo2 glm starcoder2 stablelm cohere qwen2 mistral phi3 granite gemma2 olmo smollm3 "
    "opt seed_oss helium".split()
)
SIZES: Mapping[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYOUTS: Mapping[str, Mapping[str, object]] = {
    "even": {},
    "suggested": {},
    "uneven heads": {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3},
    "fewer heads than ranks": {"num_key_value_heads": 1},
    "tied table": {"tie_word_embeddings": True},
    "uneven width": {"intermediate_size": 97},
    "uneven vocabulary": {"vocab_size": 129},
    "without an entry": {},
}


@dataclass(frozen=True, slots=True)
class Trainer:
    """A client, the variable that names its interpreter, the layouts that are run, and whether by the plan of the model."""

    client: str
    python: str
    layouts: tuple[str, ...]
    types: tuple[str, ...] = TYPES
    carried: bool = False


DEEPSPEED = Trainer(
    "deepspeed",
    "SHARDPROOF_DEEPSPEED_PYTHON",
    ("even", "uneven heads", "fewer heads than ranks", "tied table", "without an entry"),
)
TORCHTITAN = Trainer(
    "torchtitan",
    "SHARDPROOF_TORCHTITAN_PYTHON",
    ("even", "uneven heads", "fewer heads than ranks", "tied table", "uneven width", "uneven vocabulary"),
)
SGLANG = Trainer("sglang", "SHARDPROOF_SGLANG_PYTHON", tuple(LAYOUTS), carried=True)
NEMO = Trainer("nemo", "SHARDPROOF_NEMO_PYTHON", tuple(LAYOUTS), carried=True)


@dataclass(slots=True)
class Trained:
    """One type at one layout: the proof's verdict with its codes, and the engine's largest differences or its error."""

    name: str
    layout: str
    verdict: str = ""
    codes: list[str] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    error: str = ""
    reason: str = ""
    """Why nothing was trained."""

    @property
    def right(self) -> bool:
        return bool(self.differences) and max(self.differences.values()) <= LIMIT

    @property
    def disagrees(self) -> bool:
        return not self.reason and self.verdict == ("refuted" if self.right else "proved")


def deepspeed(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """The rows of DeepSpeed AutoTP."""
    return main(DEEPSPEED, types, out, tp=tp)


def nemo(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """The rows of NeMo AutoModel."""
    return main(NEMO, types, out, tp=tp)


def torchtitan(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """The rows of torchtitan's Transformers backend."""
    return main(TORCHTITAN, types, out, tp=tp)


def sglang(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """The rows of SGLang's reader."""
    return main(SGLANG, types, out, tp=tp)


def main(trainer: Trainer, types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """A row a type and layout, written after each; what is in the file already is not run again."""
    rows = [Trained(**fields) for fields in json.loads(out.read_text())] if out.is_file() else []
    known = {(row.name, row.layout) for row in rows}
    with ClientRanks(os.environ[trainer.python], timeout=200.0) as ranks:
        for name in types or trainer.types:
            for layout in trainer.layouts:
                if (name, layout) in known:
                    continue
                rows.append(_trained(trainer, ranks, name, layout, tp))
                out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
                print(_line(rows[-1]), flush=True)
    print("\n".join(table(rows)))
    return int(any(row.disagrees for row in rows))


def table(rows: list[Trained]) -> Iterator[str]:
    """Counts for each layout, and every disagreement."""
    yield "| layout | trained | right | proved | refuted | not proved | disagree |"
    yield "|---|---|---|---|---|---|---|"
    for layout in LAYOUTS:
        own = [row for row in rows if row.layout == layout and not row.reason]
        if not own:
            continue
        verdicts = [sum(row.verdict == verdict for row in own) for verdict in ("proved", "refuted", "not proved")]
        counts = [len(own), sum(row.right for row in own), *verdicts, sum(row.disagrees for row in own)]
        yield f"| {layout} | {' | '.join(map(str, counts))} |"
    yield from (f"disagree: {_line(row)}" for row in rows if row.disagrees)


def _trained(trainer: Trainer, ranks: ClientRanks, name: str, layout: str, tp: int) -> Trained:
    row = Trained(name, layout)
    try:
        loaded = _small(name, layout)
        plan = _plan(trainer, loaded, layout, tp)
        proof = prove_for(find_dialect(trainer.client), loaded, plan, tp=tp)
        beside = _beside_the_plan(trainer, loaded)
    except Exception as error:  # a type that has no such sizes, or no plan, is a row too
        row.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return row
    row.verdict = Verdict.REFUTED.value if beside else proof.verdict.value
    row.codes = sorted({f.code for f in (*proof.findings, *beside) if f.severity is not Severity.WARNING})
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(loaded, Path(folder))
        step = ClientStep(Path(folder), trainer.client, plan.styles(base_prefix(model)), tp)
        (result,) = ranks.run((step,))
    row.differences, row.error = dict(result.differences), result.error[:300]
    return row


def _beside_the_plan(trainer: Trainer, loaded: LoadedModel) -> list[Finding]:
    """What `plan check` says of the head and the norms that an engine makes itself."""
    contract = find_dialect(trainer.client).contract
    if contract is None or not contract.makes_head:
        return []
    subject = subject_of(on_meta(loaded))
    found = check_served(subject.model, subject.graph, subject.prefix, contract)
    return [finding for finding in found if finding.severity is Severity.ERROR]


def _small(name: str, layout: str) -> LoadedModel:
    kind = CONFIG_MAPPING[name]
    known = set(kind().to_dict()) | set(kind.attribute_map)
    wanted = {**SIZES, **LAYOUTS[layout]}
    if layout == "fewer heads than ranks" and "num_key_value_heads" not in known:
        wanted["num_attention_heads"] = 1
    return load(name, overrides={key: value for key, value in wanted.items() if key in known})


def _plan(trainer: Trainer, loaded: LoadedModel, layout: str, tp: int) -> Plan:
    if find_dialect(trainer.client).reader is Reader.NAMES:
        return Plan()
    if trainer.carried and layout != "suggested":
        plan = carried_plan(loaded, on_meta(loaded))
    else:
        plan = compile_for(find_dialect(trainer.client), loaded, suggest(loaded).plan, tp=tp).plan
    if layout != "without an entry":
        return plan
    prefix = base_prefix(on_meta(loaded))
    found = next(((p, s) for p, s in plan.styles(prefix).items() if s == "rowwise"), None)
    if found is None:
        raise ValueError("the plan has no rowwise entry that could be left out")
    pattern, style = found
    return plan.edited(Edit(pattern, style, None), prefix)


def _line(row: Trained) -> str:
    found = max(row.differences.items(), key=lambda pair: pair[1]) if row.differences else ("", row.error or row.reason)
    told = f"{found[1]:.1e} ({found[0]})" if isinstance(found[1], float) else found[1]
    return f"{row.name}, {row.layout}: {row.verdict} {', '.join(row.codes)}; engine {told}"
