"""Batches in, a trained model directory out."""
