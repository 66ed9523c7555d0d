"""How good answers are: COCO's figures, errors of joints, left and right."""
