"""Aggregators: one method per file, one row each in ``registry.AGGREGATORS``."""

from diffusemble.aggregators.storage import load_aggregator, load_published, save_aggregator

__all__ = ["load_aggregator", "load_published", "save_aggregator"]
