"""The verdict on one plan for each client that serves models. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardproof.planner.ir.findings import Verdict


@dataclass(frozen=True, slots=True)
class ClientVerdict:
    """One client: `verdict` and `reasons` (code: message) are those of the plan.

    `nearest`, `losses` (a parent's path -> why it is not as planned) and `share` (of the parameter bytes sharded, 0 to 1) are
    of the plan that `plan suggest --for` gives this client: this same plan where that is right.
    """

    client: str
    """Client and version, as `vllm 0.32`."""
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    nearest: Verdict = Verdict.PROVED
    losses: Mapping[str, str] = field(default_factory=dict)
    share: float = 0.0

    @property
    def option(self) -> str:
        """The client as `--for` takes it."""
        return self.client.split(" ")[0]


@dataclass(frozen=True, slots=True)
class Everywhere:
    """One plan in every serving client, and the share that a single plan for all of them would shard.

    `shared` is the share of the parameter bytes that such a plan shards in Transformers; None where no plan is right in all.
    """

    clients: tuple[ClientVerdict, ...]
    shared: float | None

    @property
    def one(self) -> bool:
        """Whether the plan is right in every client."""
        return all(reached.verdict is Verdict.PROVED for reached in self.clients)
