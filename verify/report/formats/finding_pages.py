"""The findings as Markdown pages, for the site: one a finding, and a list of them all."""

from shardproof.verify.findings.catalogue import FAMILIES, Example, Rule, rules, snippet


def rule_page(rule: Rule) -> str:
    """What `plan explain CODE` says."""
    parts = [
        f"# {rule.code} {rule.name}",
        f"A finding of the {rule.family} family; usually *{rule.severity}*. `plan explain {rule.code}` prints this page.",
        f"## What\n\n{rule.what}",
        f"## Why\n\n{rule.why}",
        "\n\n".join(["## Example", *map(_example, rule.invalid)]),
        "\n\n".join(["## Use instead", rule.use_instead, *map(_example, rule.valid)]),
        f"## Fix safety\n\n{rule.fix_safety}",
    ]
    return "\n\n".join(parts) + "\n"


def _example(example: Example) -> str:
    return f"{example.note}\n\n```python\n{snippet(example)}\n```"


def rules_page() -> str:
    """Every finding by family, with a link to its page; paths are relative to the list's own folder."""
    parts = [
        "# Findings",
        "One finding is one diagnosed problem. A code is never used for another. The examples on these pages are tests.",
    ]
    for letters, family in FAMILIES.items():
        mine = [rule for code, rule in rules().items() if code.startswith(letters)]
        rows = [
            f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.severity} | {_first(rule.what)} |" for rule in mine
        ]
        parts.append(
            "\n".join([f"## {letters}: {family}\n", "| code | name | severity | what |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


def _first(text: str) -> str:
    """The first sentence; a bar would end the cell."""
    return text.replace("|", "\\|").partition(". ")[0].rstrip(".") + "."
