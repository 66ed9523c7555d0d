"""The network: images in, losses or people in canvas pixels out."""
