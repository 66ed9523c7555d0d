"""The tensors of the old network, by layer and variable, and what their shapes tell of its size.

A tensor is called as its layer and variable are: "res2a_branch2a/kernel". Kernels lie as Keras has them: convolution
[height, width, in, out], transposed convolution [height, width, out, in], fully connected [in, out].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from model.matterport.config import STAGES, Architecture
from model.weights.pickle_reader import RefusedError

Shape = tuple[int, ...]
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
KEYPOINT_CONVOLUTIONS = 8
MASK_CONVOLUTIONS = 4
RPN_LAYERS = ("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred")  # all three in one group of the file, `RPN_GROUP`
RPN_GROUP = "rpn_model"


def block_name(stage: int, block: int) -> str:
    """The block of a stage, from 0: "2a", "4w"."""
    return f"{stage}{chr(ord('a') + block)}"


def shapes(size: Architecture) -> dict[str, Shape]:
    """The shape of every tensor of a network of that size, in the order in which an image passes them."""
    return dict(_tensors(size))


def _tensors(size: Architecture) -> Iterator[tuple[str, Shape]]:
    yield from _convolution("conv1", (7, 7, 3, size.stem))
    yield from _batch_norm("bn_conv1", size.stem)
    inputs = size.stem
    for stage, blocks, width, channels in zip(STAGES, size.blocks, size.widths, size.channels, strict=True):
        for block in range(blocks):
            name = f"{block_name(stage, block)}_branch"
            convolutions = [("2a", (1, 1, inputs, width)), ("2b", (3, 3, width, width)), ("2c", (1, 1, width, channels))]
            if block == 0:
                convolutions.append(("1", (1, 1, inputs, channels)))
            for part, kernel in convolutions:
                yield from _convolution(f"res{name}{part}", kernel)
                yield from _batch_norm(f"bn{name}{part}", kernel[-1])
            inputs = channels
    for stage, channels in zip(STAGES, size.channels, strict=True):
        yield from _convolution(f"fpn_c{stage}p{stage}", (1, 1, channels, size.fpn))
    for stage in STAGES:
        yield from _convolution(f"fpn_p{stage}", (3, 3, size.fpn, size.fpn))
    yield from _convolution("rpn_conv_shared", (3, 3, size.fpn, size.rpn))
    yield from _convolution("rpn_class_raw", (1, 1, size.rpn, 2 * size.anchors))
    yield from _convolution("rpn_bbox_pred", (1, 1, size.rpn, 4 * size.anchors))
    yield from _convolution("mrcnn_class_conv1", (size.class_size, size.class_size, size.fpn, size.class_channels))
    yield from _batch_norm("mrcnn_class_bn1", size.class_channels)
    yield from _convolution("mrcnn_class_conv2", (1, 1, size.class_channels, size.class_channels))
    yield from _batch_norm("mrcnn_class_bn2", size.class_channels)
    yield from _convolution("mrcnn_class_logits", (size.class_channels, size.classes))
    yield from _convolution("mrcnn_bbox_fc", (size.class_channels, 4 * size.classes))
    for name, number, channels in (
        ("mrcnn_keypoint_mask", KEYPOINT_CONVOLUTIONS, size.keypoint_channels),
        ("mrcnn_mask", MASK_CONVOLUTIONS, size.mask_channels),
    ):
        inputs = size.fpn
        for layer in range(1, number + 1):
            yield from _convolution(f"{name}_conv{layer}", (3, 3, inputs, channels))
            yield from _batch_norm(f"{name}_bn{layer}", channels)
            inputs = channels
    yield from _deconvolution("mrcnn_keypoint_mask_deconv", (2, 2, size.keypoints, size.keypoint_channels))
    yield from _deconvolution("mrcnn_mask_deconv", (2, 2, size.mask_channels, size.mask_channels))
    yield from _convolution("mrcnn_mask", (1, 1, size.mask_channels, size.classes))


def _convolution(layer: str, kernel: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{layer}/kernel", kernel
    yield f"{layer}/bias", kernel[-1:]


def _deconvolution(layer: str, kernel: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{layer}/kernel", kernel
    yield f"{layer}/bias", kernel[-2:-1]


def _batch_norm(layer: str, channels: int) -> Iterator[tuple[str, Shape]]:
    for variable in BATCH_NORM:
        yield f"{layer}/{variable}", (channels,)


def architecture(found: Mapping[str, Shape]) -> Architecture:
    """The size of the network whose tensors have these shapes. What contradicts itself is for `shapes` to tell.

    Raises:
      RefusedError: a tensor that tells the size is missing, or has another number of dimensions.
    """

    def kernel(layer: str, dimensions: int = 4) -> Shape:
        name = f"{layer}/kernel"
        if name not in found:
            raise RefusedError(_why_missing(layer, found))
        if len(found[name]) != dimensions or 0 in found[name]:
            raise RefusedError(f"its {name} has the shape {found[name]}; {dimensions} sizes above 0 were expected")
        return found[name]

    blocks = tuple(_count(stage, found) for stage in STAGES)
    first = [block_name(stage, 0) for stage in STAGES]
    rpn_classes = kernel("rpn_class_raw")[-1]
    if rpn_classes % 2:
        raise RefusedError(f"its rpn_class_raw/kernel has {rpn_classes} channels; two for each anchor were expected")
    return Architecture(
        blocks=tuple(max(number, 1) for number in blocks),
        stem=kernel("conv1")[-1],
        widths=tuple(kernel(f"res{name}_branch2a")[-1] for name in first),
        channels=tuple(kernel(f"res{name}_branch2c")[-1] for name in first),
        fpn=kernel("fpn_c5p5")[-1],
        rpn=kernel("rpn_conv_shared")[-1],
        anchors=rpn_classes // 2,
        class_channels=kernel("mrcnn_class_conv1")[-1],
        class_size=kernel("mrcnn_class_conv1")[0],
        mask_channels=kernel("mrcnn_mask_conv1")[-1],
        keypoint_channels=kernel("mrcnn_keypoint_mask_conv1")[-1],
        classes=kernel("mrcnn_class_logits", 2)[-1],
        keypoints=kernel("mrcnn_keypoint_mask_deconv")[-2],
    )


def _count(stage: int, found: Mapping[str, Shape]) -> int:
    count = 0
    while f"res{block_name(stage, count)}_branch2a/kernel" in found:
        count += 1
    return count


def _why_missing(layer: str, found: Mapping[str, Shape]) -> str:
    """Names the network that a file without `layer` holds, if it is a known one."""
    if "mrcnn_class_logits/kernel" in found and layer.startswith("mrcnn_keypoint"):
        return (
            f"has no {layer}: it is matterport's Mask R-CNN for objects ({found['mrcnn_class_logits/kernel'][-1]} classes, no "
            "keypoint head), not the one for human pose"
        )
    if "res2a_branch2a/kernel" in found and "fpn_c5p5/kernel" not in found:
        return f"has no {layer}: it is a ResNet alone, not the whole network"
    return f"has no {layer}/kernel: another network than Mask R-CNN for human pose, or only a part of it"
