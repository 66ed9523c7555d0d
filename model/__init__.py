"""Batches in, losses or people out. Imports `pipeline`, never `export`."""
