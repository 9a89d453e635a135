"""What a compiled kernel costs, read from its machine code; no GPU and no driver is needed."""
