"""docs/engines.md: what real vLLM made of each family."""

from collections.abc import Sequence

from benchmarks.engines.families import CUSTOM
from benchmarks.engines.planted import planted
from benchmarks.engines.rows import LAYOUTS, Answer, Row, key
from shardproof.launch.clients.vllm_engine import LIMIT

HEAD = f"""# In the real engine

vLLM itself (on CPU, its Transformers backend) served a small twin of each model type with random weights in float32, on one rank
and at three layouts. Shown is the largest difference of any log-probability from the single-device model's, in
nats; up to {LIMIT:g} is right. *Proof* is what `plan verify --for vllm` said of the same plan before. Written by
`python -m benchmarks engines --page docs/engines.md`; do not edit by hand.

"""


def page(every: Sequence[Row]) -> str:
    """The whole page."""
    rows = [row for row in every if row.name not in planted()]
    faulty = [row for row in every if row.name in planted() and not row.reason]
    served = [row for row in rows if row.alone.right]
    beside = sorted({", ".join(f"{name} {version}" for name, version in row.versions.items()) for row in rows} - {""})
    return (
        HEAD
        + "".join(f"Versions: {each}.\n\n" for each in beside)
        + "\n".join(
            [
                *_totals(rows, served),
                "",
                *_table("ours", served),
                "",
                *_table("shipped", served),
                "",
                *_planted(faulty),
                *_rest(rows),
            ]
        )
    )


def _totals(rows: Sequence[Row], served: Sequence[Row]) -> list[str]:
    ours = [row for row in served if row.right("ours")]
    types = [row for row in ours if row.name not in CUSTOM]
    shipped = [a for row in served if row.carried for a in row.answers.get("shipped", {}).values() if a.ran]
    wrong = [a for a in shipped if not a.right]
    counted = (
        ("types tried", len(rows)),
        ("served rightly on one rank", len(served)),
        ("right with our plan at all three layouts", len(types)),
        ("of them without a plan of layers in Transformers", sum(not row.carried for row in types)),
        ("models with code of their own, right at all three layouts", len(ours) - len(types)),
        ("shipped plans and layouts that ran", len(shipped)),
        ("of them wrong or failing in the engine", len(wrong)),
        ("of those, refuted by the proof before", sum(a.verdict == "refuted" for a in wrong)),
        ("proof and engine disagree", sum(len(row.disagreements()) for row in rows)),
    )
    return ["| measure | number |", "|---|---|", *(f"| {label} | {number} |" for label, number in counted)]


def _table(plan: str, rows: Sequence[Row]) -> list[str]:
    title = "The plan of `plan suggest --for vllm`" if plan == "ours" else "The plan that Transformers ships"
    head = ["type", "one rank"]
    for layout in LAYOUTS:
        head += [key(*layout), "proof"]
    shown = [row for row in rows if plan in row.answers and (plan == "ours" or row.carried)]
    lines = [_line([row.name, _cell(row.alone), *_cells(row, plan)]) for row in sorted(shown, key=lambda row: row.name)]
    return [f"## {title}", "", _line(head), _line(["---"] * len(head)), *lines]


def _cells(row: Row, plan: str) -> list[str]:
    found = []
    for layout in LAYOUTS:
        answer = row.answers[plan].get(key(*layout), Answer())
        codes = f" {', '.join(answer.codes)}" if answer.codes else ""
        found += [_cell(answer), f"{answer.verdict}{codes}"]
    return found


def _cell(answer: Answer) -> str:
    if answer.difference is not None:
        return f"{answer.difference:.1e}" if answer.right else f"**{answer.difference:.2g}**"
    return "**raises**" if answer.error else ""


def _planted(rows: Sequence[Row]) -> list[str]:
    """What the engine made of each planted fault, beside what `plan check` said of the same model."""
    if not rows:
        return []
    counted = (
        ("faults served", len(rows)),
        ("wrong in the engine or refused by it, on one rank or at a layout", sum(_fails(row) for row in rows)),
        (
            "of them told before: by `plan check`, or refuted where it fails",
            sum(_fails(row) and _told(row) for row in rows),
        ),
        (
            "served rightly everywhere, and an error of `plan check`",
            sum(bool(row.checked) and not _fails(row) for row in rows),
        ),
    )
    lines = [
        _line(
            [
                row.name,
                _cell(row.alone),
                *(_cell(row.answers.get("ours", {}).get(key(*layout), Answer())) for layout in LAYOUTS[:2]),
                ", ".join(sorted({said.split()[0] for said in row.checked})) or "nothing",
            ]
        )
        for row in rows
    ]
    head = ["fault", "one rank", *(key(*layout) for layout in LAYOUTS[:2]), "`plan check --backend vllm`"]
    return [
        "## Planted faults",
        "",
        "One fault of the backend contract in a right model (`python -m benchmarks engines --types planted`). The checks",
        "ask more than this version of the engine needs on this model: what it serves rightly all the same is counted apart.",
        "",
        "| measure | number |",
        "|---|---|",
        *(f"| {label} | {number} |" for label, number in counted),
        "",
        _line(head),
        _line(["---"] * len(head)),
        *lines,
        "",
    ]


def _fails(row: Row) -> bool:
    given = (row.alone, *row.answers.get("ours", {}).values())
    return any(answer.ran and not answer.right for answer in given)


def _told(row: Row) -> bool:
    if row.checked:
        return True
    ours = row.answers.get("ours", {}).values()
    return row.alone.right and all(answer.right or answer.verdict == "refuted" for answer in ours if answer.ran)


def _rest(rows: Sequence[Row]) -> list[str]:
    left = sorted((row for row in rows if not row.alone.right), key=lambda row: row.name)
    lines = [
        _line([row.name, _safe(row.reason or row.alone.error or _cell(row.alone)), _safe(_first(row))]) for row in left
    ]
    head = ["type", "vLLM on one rank", "what `plan check --backend vllm` says before"]
    return ["## Not served on one rank", "", _line(head), _line(["---"] * 3), *lines, ""]


def _first(row: Row) -> str:
    return row.checked[0] if row.checked else ""


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")[:160]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
