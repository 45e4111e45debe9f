"""Merging the weights of models of one architecture into one model."""
