"""A trained model in, files for serving out. Imports `model` and `pipeline`."""
