"""Photographs and annotations in, batches out. Imports neither `model` nor `export`."""
