"""A plan on a model as data for the HTML page; `verify.report.picture` computes it. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """One module: its style, the placements of its parameters, `whole` and `local` bytes of its own parameters in all and on
    one rank, and its collectives; `repeats` is the path of the layer that it repeats.
    """

    path: str
    kind: str
    style: str
    placements: tuple[tuple[str, str], ...]
    whole: int
    local: int
    collectives: tuple[str, ...]
    repeats: str | None = None


@dataclass(frozen=True, slots=True)
class DrawnStage:
    """One pipeline stage: its layers in words, the modules beside them, parameter bytes of one of its ranks."""

    layers: str
    beside: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Picture:
    """Modules in the order of the model, and the stages; `tp` ranks share a stage."""

    boxes: tuple[Box, ...]
    stages: tuple[DrawnStage, ...]
    tp: int
    pp: int
