"""All dialects by client and version."""

from dataclasses import replace

from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.readable_text import nearest
from shardproof.verify.clients.deepspeed.dialect import DEEPSPEED
from shardproof.verify.clients.dialect import Dialect
from shardproof.verify.clients.nemo.dialect import NEMO
from shardproof.verify.clients.sglang.dialect import SGLANG
from shardproof.verify.clients.tgi.dialect import TGI
from shardproof.verify.clients.torchtitan.dialect import TORCHTITAN, TORCHTITAN_0_3
from shardproof.verify.clients.transformers.dialect import TRANSFORMERS
from shardproof.verify.clients.transformers.version_4_57 import TRANSFORMERS_4_57
from shardproof.verify.clients.vllm.dialect import VLLM_0_24, VLLM_0_25, VLLM_0_32, VLLM_0_33

DIALECTS: tuple[Dialect, ...] = (
    TRANSFORMERS_4_57,
    TRANSFORMERS,
    VLLM_0_24,
    VLLM_0_25,
    VLLM_0_32,
    VLLM_0_33,
    SGLANG,
    TGI,
    TORCHTITAN,
    TORCHTITAN_0_3,
    DEEPSPEED,
    NEMO,
)
"""In order of version within a client: the last of a client is the one that its plain name means."""


def find_dialect(name: str) -> Dialect:
    """The dialect of `vllm`, or of `vllm@0.24`. A version that was not read is answered by the last one before it, and named so.

    Transformers 5 is read from the installed version, which is the only one that there is an answer for.

    Raises:
        ArgumentError: there is no such client, or nothing is known of that version.
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
    exact = next((dialect for dialect in fitting if _is_of(version, dialect.version)), None)
    if exact is None and client == "transformers":
        have = known[-1].version
        raise ArgumentError(
            f"Transformers {version} is not the installed {have}, whose reading is taken from its code; run the command in an "
            f"environment that has {version}, or let --python name its interpreter. Of Transformers 4, only {known[0].version} "
            "was read."
        )
    if not fitting:
        raise ArgumentError(f"{client} {version} was not read; the oldest that was is {known[0].version}.")
    return exact or replace(fitting[-1], asked=version)


def _is_of(version: str, read: str) -> bool:
    """Whether a version is the one that was read, or one of its patches."""
    return _number(version)[: len(_number(read))] == _number(read)


def clients() -> tuple[str, ...]:
    """Every client once."""
    return tuple(dict.fromkeys(dialect.client for dialect in DIALECTS))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
