"""Mask R-CNN for human pose, the Keras network of 2018: its weights in, its answers out.

The network descends from matterport/Mask_RCNN; Superlee506/Mask_RCNN_Humanpose trained it for keypoints. What is peculiar of it
(its anchors, its pooling, boxes in whole pixels, maps on a 14×14 grid) lives in this room alone. Boxes are float32 y0, x0, y1,
x1 here, as in its weights; the canvas is a square with the image in its middle. What leaves the room is as everywhere else.
"""
