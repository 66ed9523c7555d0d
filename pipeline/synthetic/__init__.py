"""Rendered people in COCO's format, with known truth."""
