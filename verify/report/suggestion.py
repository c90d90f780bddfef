"""The result of `plan suggest`: a plan, its legal degrees and its proof. Data only: formatting it needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.explanation import Explanation, LeftWhole
from shardproof.planner.ir.plan import Plan
from shardproof.verify.report.client_readings import Everywhere
from shardproof.verify.report.difference import Difference
from shardproof.verify.report.report import Report


@dataclass(frozen=True, slots=True)
class Suggested:
    """`degrees` are the legal tensor-parallel degrees, and what forbids the others; `sharded_fraction` is the share of
    parameter bytes sharded.

    `report` holds the proof at `tp` ranks. `config_class` and `model_class` (the class with the head) are where the
    parts of the plan belong; a module of any class has no config class (""). `differences` are those between the model's
    own plan (the first) and this one, if they were compared. `everywhere` has the verdict for each serving client, of a
    plan that was not made for one client. `left` are the parameters that the plan does not shard, where Transformers
    reads it. `lost` says what a client's dialect cannot say of the inferred plan.
    """

    model: str
    config_class: str
    model_class: str
    plan: Plan
    degrees: Degrees
    sharded_fraction: float
    tp: int
    report: Report
    notes: tuple[str, ...] = ()
    differences: tuple[Difference, ...] | None = None
    explanation: Explanation | None = None
    owners: Mapping[str, str] = field(default_factory=dict)
    everywhere: Everywhere | None = None
    left: tuple[LeftWhole, ...] = ()
    lost: tuple[str, ...] = ()
