"""Models that no library has: small, with structures and names of their own, served as remote code."""
