"""Slow twins: what the kernels must answer, written for reading."""
