"""What TensorBoard says beside each curve and image of a training."""

from __future__ import annotations

from collections.abc import Mapping

# What TensorBoard says beside a curve, by the name of the metric.
DESCRIPTIONS: Mapping[str, str] = {
    "loss": "Sum of the five losses, as they are weighted in training",
    "rpn_objectness": "Loss of the RPN: is there a person at a sampled anchor?",
    "rpn_box": "Loss of the RPN: deltas from anchors to boxes",
    "box_class": "Loss of the box head: is there a person in a RoI?",
    "box_delta": "Loss of the box head: deltas from RoIs to boxes",
    "keypoint": "Loss of the keypoint head: the place of each visible keypoint in its heatmap",
    "learning_rate": "Learning rate of the step",
    "images": "Images in a batch, padding images left out",
    "unreadable": "Images in a batch that could not be read, and were left out",
    "positive_rois": "RoIs in a batch that are a person",
    "keypoint_rois": "RoIs in a batch that the keypoint head learned from",
    "keypoint_overflow": "RoIs in a batch for which the keypoint head's buffer had no room (keypoint_head.rois)",
    "gradient_norm": "Norm of the whole gradient, before it is clipped",
    "loss_scale": "Factor of the loss under mixed_float16; 1 otherwise",
    "skipped": "Share of the steps that changed nothing, because the gradient was not finite",
    "images_per_second": "Images a second over all replicas, padding images left out",
    "tflops": "Arithmetic of the steps, in TFLOP/s over all devices",
    "mfu": "Model FLOPs utilisation: the arithmetic of the steps over what the devices can do at most",
    "device_memory_gb": "Most memory of a device so far, GB",
    "waiting": "Share of the time in which the step waited for data; 0 is best",
    "keypoint_ap": "COCO's keypoint AP on the held-out split: the mean over the OKS thresholds 0.50, 0.55, …, 0.95",
    "keypoint_ap50": "COCO's keypoint AP at the OKS threshold 0.50",
    "box_ap": "COCO's box AP on the held-out split: the mean over the IoU thresholds 0.50, 0.55, …, 0.95",
    "box_ap50": "COCO's box AP at the IoU threshold 0.50",
}
OF_IMAGES = (
    "An image of the held-out split: its annotations on the left, on the right the people found with a score of 0.5 or more"
)
