"""A tool of the checkout, which is not in the wheel: `make demo`."""
