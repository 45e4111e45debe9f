"""Formulas that make one model's weights of several, one method per file; ``registry.MERGES`` lists them."""

from diffusemble.merging.methods.base import Method, Tensors
from diffusemble.merging.methods.weighted import Weights, weighted_average

__all__ = ["Method", "Tensors", "Weights", "weighted_average"]
