"""Wrong and hostile inputs: what each command does with them."""
