"""All dialects by client and version."""

from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.spelling import nearest
from shardproof.verify.clients.deepspeed.dialect import DEEPSPEED
from shardproof.verify.clients.dialect import Dialect
from shardproof.verify.clients.nemo.dialect import NEMO
from shardproof.verify.clients.sglang.dialect import SGLANG
from shardproof.verify.clients.tgi.dialect import TGI
from shardproof.verify.clients.torchtitan.dialect import TORCHTITAN, TORCHTITAN_0_3
from shardproof.verify.clients.transformers.dialect import TRANSFORMERS
from shardproof.verify.clients.vllm.dialect import VLLM_0_24, VLLM_0_25, VLLM_0_32

DIALECTS: tuple[Dialect, ...] = (
    TRANSFORMERS,
    VLLM_0_24,
    VLLM_0_25,
    VLLM_0_32,
    SGLANG,
    TGI,
    TORCHTITAN,
    TORCHTITAN_0_3,
    DEEPSPEED,
    NEMO,
)
"""In order of version within a client: the last of a client is the one that its plain name means."""


def find_dialect(name: str) -> Dialect:
    """The dialect of `vllm`, or of `vllm@0.24`; of a version between two that were read, the lower.

    `ArgumentError` names what there is.
    """
    client, _, version = name.partition("@")
    known = [dialect for dialect in DIALECTS if dialect.client == client]
    if not known:
        near = nearest(client, clients(), count=1)
        raise ArgumentError(f"there is no client {client!r}; the clients are {', '.join(clients())}.{near}")
    if not version:
        return known[-1]
    try:
        fitting = [dialect for dialect in known if _number(dialect.version) <= _number(version)]
    except ValueError:
        raise ArgumentError(f"{version!r} is no version of {client}; write it as {known[-1].version}.") from None
    if not fitting:
        raise ArgumentError(f"{client} {version} was not read; the oldest that was is {known[0].version}.")
    return fitting[-1]


def clients() -> tuple[str, ...]:
    """Every client once."""
    return tuple(dict.fromkeys(dialect.client for dialect in DIALECTS))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
