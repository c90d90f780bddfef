"""Write docs/clients.md anew: `python -m tests.clients_page`."""

from pathlib import Path

from shardproof.verify.clients.page import page

PAGE = Path(__file__).parents[1] / "docs" / "clients.md"

if __name__ == "__main__":
    PAGE.write_text(page())
