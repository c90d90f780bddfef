"""BE401: keywords that do not arrive at the attention.

Engines give their attention what it needs as keywords of the base model's forward (`attention_instances` in vLLM up to 0.25
and SGLang, `forward_batch` in SGLang, `kv_cache`, `slots` and others in TGI). Every forward on the way must take `**kwargs`
and pass them on. Source: `vllm/model_executor/models/transformers/base.py`, 0.25.0, `Base.forward`;
`sglang/srt/models/transformers.py`, 0.5.23, `_run_hf_backbone`; Transformers' documentation of `AttentionInterface`.
"""

from collections.abc import Iterator

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.clients.contract.experiments.keywords import Loss
from shardproof.verify.clients.contract.experiments.results import Experiments
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.findings import be401

_PROBLEMS = {
    "call": ("it makes a call without them", "the keywords in that call"),
    "hook": ("a hook before its forward leaves them out", "the keywords in what the hook returns"),
    "replaced or emptied": ("it replaces or empties them", "the keywords as they came"),
    "filtered": ("it passes some of them on", "all of the keywords"),
    "not taken": ("it throws them away", "the keywords in its calls"),
    "not found": ("they do not arrive there, and the line was not found", "the keywords in every call on the way"),
    "signature": ("its signature has no **kwargs", "**kwargs in its signature"),
}


def lost_keywords(experiments: Experiments, contract: ContractFacts) -> Iterator[Finding]:
    """One finding for each function that loses keywords of the client."""
    outcome = experiments.lost_keywords(contract.keywords, head=contract.calls_head)
    by_function: dict[tuple[str, str], list[Loss]] = {}
    for loss in outcome.found or ():
        by_function.setdefault((loss.function, str(loss.source)), []).append(loss)
    severity = Severity.ERROR if contract.needs_keywords else Severity.WARNING
    for (function, _), losses in by_function.items():
        problem, needed = _PROBLEMS[losses[0].problem]
        place = Place(module=losses[0].path or None, source=losses[0].source)
        names = [loss.keyword for loss in losses]
        yield be401.keywords_dropped(
            function, place, keywords=names, problem=problem, needed=needed, client=contract.client, severity=severity
        )
