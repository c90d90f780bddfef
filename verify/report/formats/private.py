"""Remove absolute paths (but for the file name) and the values of secret environment variables from reports.

Findings quote exceptions of a model's own code, and these may contain anything.
"""

import os
import re
from dataclasses import replace

from shardproof.planner.ir.findings import Finding

_PATH = re.compile(r"""(?<![^\s"'`(\[=>])(?:file://)?/(?:[\w.@+~-]+/)+([\w.@+~-]+)""")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8
"""The least length of a value that is treated as a secret: shorter ones are words and numbers."""


def public(text: str) -> str:
    """The text without absolute paths and secrets. A URL is not a path."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET.search(name) and not value.startswith("/"):
            text = text.replace(value, "***")
    return _PATH.sub(r"\1", text)


def public_finding(finding: Finding) -> Finding:
    """The finding with all of its texts made public."""
    return replace(
        finding,
        message=public(finding.message),
        why=public(finding.why),
        found=public(finding.found),
        needed=public(finding.needed),
    )
