"""Training the aggregator of an ensemble while its experts stay frozen."""
