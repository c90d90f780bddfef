"""What plan? The model's computation as data, and plans inferred from it."""
