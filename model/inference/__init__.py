"""A trained model and images in, people in pixels of each image out."""
