"""What no report tells: absolute paths, of which the last part is enough, and the values of the environment's secrets.

Findings quote what a model's own code raised, and that may quote anything.
"""

import os
import re
from dataclasses import replace

from shardproof.planner.ir.findings import Finding

_PATH = re.compile(r"""(?<![^\s"'`(\[=>])(?:file://)?/(?:[\w.@+~-]+/)+([\w.@+~-]+)""")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a value that is taken for a secret: shorter ones are words and numbers."""


def public(text: str) -> str:
    """The text without them. A URL is no path."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET.search(name) and not value.startswith("/"):
            text = text.replace(value, "***")
    return _PATH.sub(r"\1", text)


def public_finding(finding: Finding) -> Finding:
    """A finding as reports tell it."""
    return replace(
        finding,
        message=public(finding.message),
        why=public(finding.why),
        found=public(finding.found),
        needed=public(finding.needed),
    )
