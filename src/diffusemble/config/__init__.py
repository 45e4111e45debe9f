"""The closed, typed schema of a run; ``settings.load_config`` reads it.

Nothing here imports torch, so that a command line can check its settings before it loads a model.
"""
