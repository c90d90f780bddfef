"""How each client, at one version, reads a plan: dialects as data, and the proof in a dialect."""
