"""Programs that run inside a client's own environment: they import that client, and nothing of this project."""
