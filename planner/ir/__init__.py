"""The words of shardproof as types: placements, graphs, styles, plans, findings. No torch here."""
