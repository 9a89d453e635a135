"""Static reports of kernels: what was asked for, compiling it, rows and tables of it."""
