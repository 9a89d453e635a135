"""Measuring: time, memory, FLOPs, energy, and the environment they were measured in."""
