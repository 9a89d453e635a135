"""Fused attention and codebook kernels, with their definitions in plain PyTorch."""
