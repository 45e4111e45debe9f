"""Measuring: feature nets, statistics, held-out loss, and the benchmark that writes docs/results.md."""
