"""Timing single attention kernels against their peers, and what they are worth to a whole model."""
