"""Random models with random plans, as hypothesis draws and shrinks them. The parts are those of `tests.zoo.fuzz_model`."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from shardproof.planner.ir.plan import Plan
from tests.zoo.fuzz_model import FRAMES, LOSSES
from tests.zoo.fuzz_parts import ENDS, EXPERTS, HOOKS, MIXERS, SOURCES
from tests.zoo.fuzz_steps import READS, STEPS

MODEL = "tests.zoo.fuzz_model:FuzzForCausalLM"
LAYER = "layers.*."
OUT, IN = ("colwise", "colwise_gather_output", "packed_colwise"), ("rowwise", "rowwise_split_input")
STYLES: Mapping[str, tuple[str, ...]] = {
    **{f"{LAYER}{name}": OUT for name in ("mix.q", "mix.k", "mix.v", "mix.qkv", "feed.up", "feed.gate", "feed.pack")},
    **{f"{LAYER}{name}": (*IN, "all_reduce") for name in ("mix.o", "feed.down")},
    f"{LAYER}feed": ("local_params", "all_reduce"),
    f"{LAYER}mix": ("local_params",),
    f"{LAYER}feed.weight": ("colwise",),
    f"{LAYER}feed.bias": ("colwise",),
    f"{LAYER}mix.sinks": ("colwise",),
    f"{LAYER}mix.norm": ("replicated_with_grad_allreduce",),
    f"{LAYER}norm": ("replicated_with_grad_allreduce", "sequence_parallel"),
    "last": ("replicated_with_grad_allreduce",),
    f"{LAYER}feed.experts": ("moe_tp_experts", "local_params"),
    f"{LAYER}feed.experts.up": ("colwise", "packed_colwise"),
    f"{LAYER}feed.experts.down": ("rowwise",),
    f"{LAYER}feed.router": ("colwise_gather_output",),
    "words": ("embedding_rowwise", "embedding_colwise"),
    "head": ("colwise_gather_output", "colwise"),
}
"""Styles that a random plan may give a pattern, the usual one first."""
DISPATCH = {
    f"{LAYER}feed.experts": "ep_dispatch_experts",
    f"{LAYER}feed.experts.up": "grouped_gemm",
    f"{LAYER}feed.experts.down": "grouped_gemm",
}


@dataclass(frozen=True, slots=True)
class FuzzPlan:
    """Styles by pattern, experts' styles by pattern, whether there are stages, and the degrees."""

    styles: tuple[tuple[str, str], ...] = ()
    experts: tuple[tuple[str, str], ...] = ()
    tp: int = 2
    ep: int = 1
    pp: int = 1

    @property
    def plan(self) -> Plan:
        """As the model's classes would carry it."""
        base = {pattern: style for pattern, style in self.styles if pattern != "head"}
        head = {pattern: style for pattern, style in self.styles if pattern == "head"}
        given: dict[str, object] = {"base_model_tp_plan": base, "tp_plan": head}
        if self.experts:
            given["base_model_ep_plan"] = dict(self.experts)
        if self.pp > 1:
            given["base_model_pp_plan"] = {"words": [["input_ids"], ["x"]], "layers": [["x"], ["x"]]}
            given["pp_plan"] = {"head": [["last_hidden_state"], ["logits"]]}
        return Plan.from_json(given)

    @property
    def smaller(self) -> Iterator["FuzzPlan"]:
        """The plan without one of its entries."""
        for entry in self.styles:
            yield replace(self, styles=tuple(one for one in self.styles if one != entry))


@dataclass(frozen=True, slots=True)
class FuzzCase:
    """A model, by the parts in which it differs from the plainest one, and plans for it."""

    parts: tuple[tuple[str, str], ...]
    plans: tuple[FuzzPlan, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """What the feed-forward does with its features."""
        return tuple(filter(None, dict(self.parts).get("steps", "").split(";")))

    @property
    def smaller(self) -> Iterator["FuzzCase"]:
        """The model without one of its parts or steps, or with one entry less in its plan."""
        for name, _ in self.parts:
            yield self._with(tuple(part for part in self.parts if part[0] != name))
        for at in range(len(self.steps)):
            kept = ";".join((*self.steps[:at], *self.steps[at + 1 :]))
            yield self._with(tuple((n, kept if n == "steps" else v) for n, v in self.parts if n != "steps" or kept))
        for plan in self.plans[:1] if len(self.plans) == 1 else ():
            for less in plan.smaller:
                yield replace(self, plans=(less,))

    def _with(self, parts: tuple[tuple[str, str], ...]) -> "FuzzCase":
        """Another model, and the plans without the entries of what it does not have."""
        there = present(dict(parts))
        kept = (replace(p, styles=tuple(one for one in p.styles if one[0] in there)) for p in self.plans)
        return FuzzCase(parts, tuple(kept))

    def __str__(self) -> str:
        model = ", ".join(f"{name}: {value}" for name, value in self.parts) or "plain"
        return f"{model} | {'; '.join(map(_written, self.plans))}"


def _written(plan: FuzzPlan) -> str:
    degrees = " ".join(f"{name}={size}" for name, size in (("tp", plan.tp), ("ep", plan.ep), ("pp", plan.pp)))
    return f"{degrees} {dict((*plan.styles, *plan.experts))}"


def _steps() -> st.SearchStrategy[str]:
    """One step: the class first, so that small classes come as often as large ones."""
    return st.sampled_from(sorted(STEPS)).flatmap(lambda name: st.sampled_from(sorted(STEPS[name])))


@st.composite
def models(draw: st.DrawFn, *, experts: bool = False, staged: bool = False) -> tuple[tuple[str, str], ...]:
    """The parts of a model: most are the plainest ones."""

    def seldom(values: tuple[str, ...], one_in: int) -> str:
        return draw(st.sampled_from(values)) if draw(st.integers(0, one_in - 1)) == one_in - 1 else values[0]

    parts = {"steps": ";".join(draw(st.lists(_steps(), max_size=3)))}
    parts["mixer"] = seldom(MIXERS, 2)
    parts["frame"] = draw(st.sampled_from(FRAMES[:-1])) if staged else seldom(FRAMES[:5] + FRAMES[-1:], 4)
    if experts:
        parts["experts"] = draw(st.sampled_from(EXPERTS[1:]))
        del parts["steps"]
    else:
        parts["source"], parts["end"] = seldom(SOURCES, 4), seldom(ENDS, 12)
        parts["hooks"], parts["loss"] = seldom(HOOKS, 6), seldom(LOSSES, 10)
        if staged:  # the schedule that runs stages has a loss of its own
            del parts["loss"]
        parts["shared"] = seldom(("false", "true"), 8)
    parts["masked_mean"] = seldom(("false", "true"), 12)
    parts["num_hidden_layers"] = draw(st.sampled_from(("3", "4"))) if staged else seldom(("2", "3"), 4)
    plain = {"steps": "", "mixer": "", "frame": "plain", "source": "up", "end": "down", "hooks": "", "loss": ""}
    plain |= {"shared": "false", "masked_mean": "false", "num_hidden_layers": "2"}
    return tuple(sorted((name, value) for name, value in parts.items() if plain.get(name) != value))


def usual(parts: Mapping[str, str]) -> dict[str, str]:
    """The plan that an author would write down for a model of these parts, right or not."""
    steps = set(parts.get("steps", "").split(";"))
    mixer, source = parts.get("mixer", ""), parts.get("source", "up")
    names = ["feed.up", "feed.down"]
    if parts.get("experts"):
        names = ["feed.experts", "feed.experts.up", "feed.experts.down"]
    elif source.startswith("packed"):
        names.append("feed.pack")
    names += [f"feed.{name}" for name, reading in READS.items() if steps & set(reading)]
    if steps & {*READS["weight"], *READS["bias"]}:
        names.append("feed")
    if mixer:
        names += ["mix.o", "mix.qkv"] if mixer.startswith("packed") else ["mix.o", "mix.q", "mix.k", "mix.v"]
    names += {"sinks": ["mix.sinks", "mix"], "normed heads": ["mix.norm"]}.get(mixer, [])
    found = {f"{LAYER}{name}": STYLES[f"{LAYER}{name}"][0] for name in names}
    if source in ("packed halves", "packed rows") and not parts.get("experts"):
        found[f"{LAYER}feed.pack"] = "packed_colwise"
    return found


def present(parts: Mapping[str, str]) -> list[str]:
    """The patterns that name something in a model of these parts."""
    found = [*usual(parts), "words", "head"]
    found += [f"{LAYER}norm"] if parts.get("frame") in ("normed", "normed after") else []
    found += ["last"] if parts.get("frame") == "shared norm" else []
    return found + ([f"{LAYER}feed.router"] if parts.get("experts") else [])


@st.composite
def plans(draw: st.DrawFn, parts: Mapping[str, str]) -> FuzzPlan:
    """The usual plan, that plan with some entries changed, or any plan."""
    there, styles = present(parts), usual(parts)
    kind = draw(st.integers(0, 9))
    if kind == 9:
        styles = {}
        changed = draw(st.lists(st.sampled_from(there), max_size=5, unique=True))
    else:
        changed = draw(st.lists(st.sampled_from(there), max_size=min(kind // 2, 3), unique=True))
    for pattern in changed:
        style = draw(st.sampled_from((None, *STYLES[pattern])))
        styles.pop(pattern, None)
        if style is not None:
            styles[pattern] = style
    return FuzzPlan(tuple(sorted(styles.items())), tp=draw(st.sampled_from((2, 2, 2, 3))))


@st.composite
def cases(draw: st.DrawFn, *, most: int = 4) -> FuzzCase:
    """A model with up to `most` plans for it: tensor-parallel ones, or expert-parallel ones, or one with two stages."""
    kind = draw(st.sampled_from(("tensor",) * 6 + ("experts",) * 2 + ("stages",) * 6))
    parts = draw(models(experts=kind == "experts", staged=kind == "stages"))
    if kind == "stages":
        return FuzzCase(parts, (FuzzPlan(tp=1, pp=2),))
    found = draw(st.lists(plans(dict(parts)), min_size=1, max_size=most, unique=True))
    if kind == "experts":
        dealt = FuzzPlan(
            (*(item for item in usual(dict(parts)).items() if ".experts" not in item[0]), ("head", STYLES["head"][0])),
            tuple(DISPATCH.items()),
            *draw(st.sampled_from(((2, 2), (3, 3)))),
        )
        found = [*found[:1], dealt]
    return FuzzCase(parts, tuple(found))


BATCH = 100
"""Cases that are drawn at once."""


def drawn(pairs: int, chance: int) -> Iterator[FuzzCase]:
    """Cases with so many plans in all, the same for the same seed."""
    left = pairs
    for turn in count():
        for case in _drawn(min(BATCH, pairs), random.Random(f"{chance} {turn}").getrandbits(64)):
            if left <= 0:
                return
            yield replace(case, plans=case.plans[:left])
            left -= len(case.plans)


def _drawn(most: int, chance: int) -> list[FuzzCase]:
    found: list[FuzzCase] = []

    @seed(chance)
    @settings(
        max_examples=most,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def note(case: FuzzCase) -> None:
        found.append(case)

    note()
    return found
