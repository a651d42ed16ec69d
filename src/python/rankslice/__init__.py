"""Loads Mixture-of-Experts checkpoints into training jobs, every rank only its slice, and writes them back."""

from rankslice.errors import Error

__all__ = ["Error"]
