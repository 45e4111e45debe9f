"""Several experts on one card: which weights are on the device when, planned, counted and kept."""
