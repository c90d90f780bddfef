"""Models of published packages that nobody here wrote."""
