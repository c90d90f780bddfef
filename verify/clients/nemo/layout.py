"""What torch's styles make of each module that NeMo AutoModel's plan names.

Source: torch 2.13, `distributed/tensor/parallel/style.py`: linear layers and embeddings, anything else raises. NeMo AutoModel
0.7.0, `components/distributed/parallelizer.py` (`_apply`): a head that is tied to the table is tied again after both are
sharded, so that it has the table's weight.
"""

from collections.abc import Mapping

from torch import nn

from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.plan import generic
from shardproof.planner.ir.styles import STYLES, ParameterLayout
from shardproof.verify.clients.dialect import Dialect, first_match
from shardproof.verify.clients.nemo.own_plans import SPLIT, TABLE
from shardproof.verify.findings import be411, tp210


def layout_of(
    dialect: Dialect, model: nn.Module, styles: Mapping[str, str]
) -> tuple[dict[str, str | None], list[Finding]]:
    """The Transformers style of the same effect for every module that is changed, by path; and what raises or is not known."""
    layout: dict[str, str | None] = {}
    findings: dict[str, Finding] = {}
    for path, module in model.named_modules():
        pattern = first_match(dialect.matching, styles, path)
        style = styles[pattern] if pattern is not None else "replicate"
        if pattern is None or style == "replicate":
            continue
        if isinstance(module, nn.Embedding):
            style = TABLE if style == SPLIT else style
        if style == "sequence_parallel" or (isinstance(module, nn.Embedding) and _shards(style) and style != TABLE):
            place = Place(entry=pattern, module=path)
            findings.setdefault(generic(path), tp210.style_of_client_not_modelled(dialect.name, styles[pattern], place))
        elif _shards(style) and not isinstance(module, nn.Linear | nn.Embedding):
            findings.setdefault(generic(path), be411.module_not_taken(dialect.name, styles[pattern], path, pattern))
        else:
            layout[path] = style
    return layout, list(findings.values())


def _shards(style: str) -> bool:
    return style in STYLES and STYLES[style].layout is not ParameterLayout.KEEP
