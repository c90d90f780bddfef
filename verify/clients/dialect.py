"""A dialect: how one client, at one version, reads a plan. Data; the readers are in `verify.clients.reading`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatch

from shardproof.planner.ir.plan import generic
from shardproof.planner.ir.styles import is_packed_name
from shardproof.verify.clients.contract.facts import ContractFacts


class Reader(StrEnum):
    """Who shards the parameters, and by what."""

    TRANSFORMERS = "Transformers' own runtime, every key"
    ENGINE = "the client replaces linear layers, by the base model's keys"
    DEEPSPEED = "DeepSpeed replaces linear layers, by all keys"
    MODULES = "torch distributes the parameters of linear layers and embeddings, by all keys"
    NEMO = "NeMo chooses a plan; torch distributes the parameters of the modules that it names"
    NAMES = "the client looks for attribute names, and reads no plan"


class Matching(StrEnum):
    """How a key meets a module path."""

    EXACT = "exact, * for a layer number"
    PREFIX = "regular expression, not anchored at the end, first match"
    SUFFIX = "regular expression with * for anything, anchored at the end, first match"
    PARTS = "one pattern of file names for each part of the path"


class UnknownStyle(StrEnum):
    """What a client does with a style that it does not have."""

    REFUSED = "refused"
    REPLICATED = "silently replicated"
    REPLACED = "the whole plan is replaced"


class Pipeline(StrEnum):
    """How stages are made."""

    NONE = "no pipeline parallelism"
    EVEN = "an even split of `layers`; the plan is not read"
    KEYS = "the plan's keys and their order; one module list"
    KEYS_OR_ORDER = (
        "the plan's keys and their order, else the decoder's children in order of declaration; one module list"
    )
    NAMES = "attribute names; the plan is not read"


class SharedExperts(StrEnum):
    """Where an expert that takes every token is added to the others."""

    APART = "in the model's own forward, after the sum over the ranks"
    SUMMED = "before the sum over the ranks"
    SUMMED_GATED = "before that sum; a gated feed-forward layer that was fused then leaves its own sum out"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One client at one version, and where each fact was read.

    `styles` is what the client makes of a style name: the Transformers style of the same effect, or `replicate`. A name that
    is not in it is treated as `unknown` says.
    """

    client: str
    version: str
    cites: tuple[str, ...]
    reader: Reader
    matching: Matching
    styles: Mapping[str, str]
    unknown: UnknownStyle
    pipeline: Pipeline
    needs_plan: bool = True
    reads_head: bool = True
    hooks_gradients: bool = False
    fuses: tuple[str, ...] = ()
    shared_experts: SharedExperts = SharedExperts.APART
    local_heads: bool = False
    repeats_kv: bool = False
    gathers_norms: bool = False
    cuts_sinks: bool = False
    keeps_tied: bool = False
    """Whether the last stage has the modules before the layers too, where input and output embeddings are tied."""
    latent_types: frozenset[str] = field(default_factory=frozenset)
    whole_attention: frozenset[str] = field(default_factory=frozenset)
    names_everything: bool = False
    """Whether a client that looks for attribute names raises for a module with parameters or buffers that it has no name for."""
    contract: ContractFacts | None = None
    """What it asks of modeling code; None where that was not read."""
    packs: bool = False
    """Whether it has styles of packed blocks of any sizes, such as `packed_rowwise[1, 4]`."""
    table_style: str = "embedding_rowwise"
    """The name of the style that splits a vocabulary table by rows."""
    embeddings: Mapping[str, str] | None = None
    """As `styles`, of embeddings; None where a style does the same there."""
    unmodelled: frozenset[str] = frozenset()
    """Styles that it has, and whose effect is not in `styles`: nothing is claimed of a plan with one."""
    names_parameters: bool = False
    """Whether a key may name a parameter, which is then sharded without what the style does to its module's inputs."""
    ties_styles: bool = False
    """Whether an output embedding that shares the input embedding's weight gets its style."""
    code_of: str = ""
    """The version of Transformers whose modeling code it runs, where that is never the installed one's."""
    asked: str = ""
    """The version that somebody asked for, where it was not read and this one is the last before it."""
    reach: str = ""
    """How a plan reaches it without a change of code; empty where only code does."""

    @property
    def name(self) -> str:
        if self.asked:
            return f"{self.client} {self.asked} (read as {self.version})"
        return f"{self.client} {self.version}"

    def effect(self, style: str) -> str | None:
        """The Transformers style of the same effect, `replicate`, or None for a name that the client does not have."""
        return style if self.packs and is_packed_name(style) else self.styles.get(style)


def first_match(matching: Matching, patterns: Iterable[str], path: str) -> str | None:
    """The pattern that a client applies to a path; None where none matches."""
    if matching is Matching.EXACT:
        wanted = generic(path)
        return next((pattern for pattern in patterns if pattern == wanted), None)
    if matching is Matching.PREFIX:
        return next((pattern for pattern in patterns if _matches(pattern, path)), None)
    if matching is Matching.PARTS:
        return next((pattern for pattern in patterns if _by_parts(pattern, path)), None)
    return next((pattern for pattern in patterns if re.match(_as_suffix(pattern), f"{path}.weight")), None)


def _by_parts(pattern: str, path: str) -> bool:
    """torch 2.13, `distributed/tensor/parallel/api.py`, `parallelize_module`."""
    wanted, parts = pattern.split("."), path.split(".")
    return len(wanted) == len(parts) and all(fnmatch(part, one) for part, one in zip(parts, wanted, strict=True))


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.match(pattern, path) is not None
    except re.error:
        return False


def _as_suffix(pattern: str) -> str:
    """`deepspeed/module_inject/tp_plan_converter.py`, 0.19.8, `_wildcard_to_regex`."""
    whole = ".*" + pattern.replace(".", r"\.").replace("*", ".*")
    return whole + "$" if whole.endswith(r"\.weight") else whole + r"\.weight$"
