"""Where tests and benchmarks may plant the mistakes of a stage runtime. In the product nothing is changed.

The proof traces, and the ranks run, the stages of one and the same case, so that each can be held against the other.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from shardproof.verify.stages.stage import Stage
    from shardproof.verify.stages.stage_layout import StageLayout


@dataclass(frozen=True)
class StageFaults:
    """What is wrong with the stages of a case: nothing. A subclass injects faults; it is hashable and pickles."""

    def chunks(self, chunks: tuple[range, ...]) -> tuple[range, ...]:
        """The layers that each stage runs, given those that it should run."""
        return chunks

    def order(self, stages: int) -> tuple[int, ...]:
        """For each place in the pipeline the stage whose program runs there."""
        return tuple(range(stages))

    def kept(self, stage: int) -> frozenset[str]:  # noqa: ARG002
        """Paths of modules that a stage runs although they belong to another stage."""
        return frozenset()

    def not_summed(self) -> frozenset[str]:
        """Names of parameters whose gradients are not summed over the stages that read them."""
        return frozenset()

    def before_build(self, model: nn.Module, layout: "StageLayout", stage: int) -> None:
        """Change the model that a stage is about to be built of."""

    def after_build(self, stage: "Stage", number: int) -> None:
        """Change a stage that was built; `number` is its number among the stages."""

    def of_stage(self, stage: int) -> object:  # noqa: ARG002
        """A hashable key that is equal for two cases whose faults change this stage in the same way."""
        return ()


NO_FAULTS = StageFaults()
