"""Is it right? Proof, the run on real ranks, and the clients. Nothing here knows how a plan was inferred."""
