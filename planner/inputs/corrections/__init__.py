"""Calls of a forward, corrected by what it raised."""
