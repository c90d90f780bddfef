"""BE414 for widths: features that an engine or torch cannot shard: they do not divide, or a quantised block would be cut."""

from collections.abc import Iterator, Mapping

from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.planner.tracing.programs import Subject
from shardproof.planner.weights.quantised import blocks_of
from shardproof.verify.clients.dialect import Dialect
from shardproof.verify.clients.engine_decisions import embedding_of, is_expert
from shardproof.verify.findings import be414

EXPERT_WIDTHS = ("moe_intermediate_size", "intermediate_size")
"""Config fields in which engines look for the width inside an expert, the first that there is."""


def uneven(dialect: Dialect, subject: Subject, layout: Mapping[str, str | None], degree: int) -> Iterator[Finding]:
    """Findings of features that do not divide evenly, or not into whole blocks of a quantised checkpoint. A vocabulary may:
    engines pad it (vLLM 0.32.0, `distributed/utils.py`, `divide`; `fused_moe/config.py`; SGLang 0.5.23,
    `srt/distributed/utils.py`).
    """
    padded = {id(embedding_of(subject.model, getter)) for getter in ("get_input_embeddings", "get_output_embeddings")}
    config = getattr(subject.model, "config", None)
    blocks = blocks_of(config)
    told: set[str] = set()
    for path, style in layout.items():
        side = {"colwise": "out_features", "rowwise": "in_features"}.get((style or "").split("_")[0], "")
        module = subject.graph.module_of.get(path)
        count = dict(module.numbers).get(side, 0) if module is not None else 0
        if not count or generic(path) in told or id(subject.model.get_submodule(path)) in padded:
            continue
        told.add(generic(path))
        yield from _refused_width(
            dialect, path, f"{count} {side} of {path}", count, degree, blocks.cut(path, side, count, degree)
        )
    text = config.get_text_config() if config is not None else None
    width = next((n for name in EXPERT_WIDTHS if isinstance(n := field_of(text, name), int)), 0)
    experts = next((m.path for m in subject.graph.modules if is_expert(subject.graph, m.path)), None)
    if experts is not None:
        cut = max(blocks.cut(experts, side, width, degree) for side in ("out_features", "in_features"))
        yield from _refused_width(dialect, experts, f"{width} features inside {experts}", width, degree, cut)


def uneven_inputs(
    dialect: Dialect, subject: Subject, layout: Mapping[str, str | None], degree: int
) -> Iterator[Finding]:
    """Findings of `rowwise` layers whose input features do not divide, where torch's own styles lay them out.

    They take the parts of an input for equal ones, and raise where the weight's are not (torch 2.13,
    `distributed/tensor/parallel/style.py`, `RowwiseParallel._prepare_input_fn`).
    """
    told: set[str] = set()
    for path, style in layout.items():
        module = subject.graph.module_of.get(path)
        count = dict(module.numbers).get("in_features", 0) if module is not None else 0
        if style == "rowwise" and count % degree and generic(path) not in told:
            told.add(generic(path))
            yield from _refused_width(dialect, path, f"{count} in_features of {path}", count, degree, 0)


def _refused_width(dialect: Dialect, path: str, width: str, count: int, degree: int, cut: int) -> Iterator[Finding]:
    """A number of features that does not divide, or whose part cuts a block of `cut` features."""
    client, cite = dialect.name, dialect.cites[0]
    if count % degree:
        yield be414.width_does_not_divide(width, path, degree=degree, client=client, cite=cite)
    elif cut:
        yield be414.block_is_cut(width, path, block=cut, degree=degree, client=client, cite=cite)
