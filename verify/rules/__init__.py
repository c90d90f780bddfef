"""One file for every finding; `verify.catalogue` loads them all."""
