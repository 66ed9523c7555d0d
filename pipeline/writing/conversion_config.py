"""What determines the records of a split, apart from its images and annotations."""

from __future__ import annotations

import dataclasses
import re

from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.data_config import MAX_PIXELS
from pipeline.record_folder import NAME

LARGEST_IMAGE = 2**31 - 1  # pixels: TensorFlow's decoders read no more
SMALLEST_SHRUNK = 32 * 32  # pixels: less than the smallest short edge shows nobody


@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """What determines the records, apart from the images and annotations.

    Attributes:
      num_shards: by default a function of the number of images alone.
      short_edges, max_edge: the sizes at which training will see the images; each plain and flipped. Without a short edge
        the records hold no anchors.
      limit: number of images to take, in the order of the records; 0 takes all.
      category, classes, keypoints, flip_pairs, sigmas: as for `annotation_file.read_annotation_file`.
      max_pixels: the most pixels of an image that is decoded; an image of more is an error.
      shrink_larger_than: images of more pixels are shrunk to this number, with their annotations; 0 leaves all as they are.
    """

    dataset_name: str = "coco_person_keypoints"
    num_shards: int | None = None
    short_edges: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_edge: int = 1333
    anchors: AnchorConfig = dataclasses.field(default_factory=AnchorConfig)
    limit: int = 0
    category: str | None = None
    classes: bool = False
    keypoints: tuple[str, ...] | None = None
    flip_pairs: tuple[tuple[str, str], ...] | None = None
    sigmas: tuple[float, ...] | None = None
    max_pixels: int = MAX_PIXELS
    shrink_larger_than: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.dataset_name):
            raise UserError(f"--dataset_name={self.dataset_name}: must be small letters, digits and _")
        if self.num_shards is not None and not 1 <= self.num_shards <= 99_999:
            raise UserError(f"--num_shards={self.num_shards}: must be from 1 to 99999")
        if not 32 <= self.max_edge <= 8192:
            raise UserError(f"--max_edge={self.max_edge}: must be from 32 to 8192 pixels")
        edges = self.short_edges
        if len(set(edges)) != len(edges) or not all(32 <= edge <= self.max_edge for edge in edges):
            raise UserError(
                f"--short_edges={','.join(map(str, edges))}: must be different numbers from 32 to {self.max_edge} (--max_edge)"
            )
        if self.limit < 0:
            raise UserError(f"--limit={self.limit}: must be a number of images, or 0 for all")
        if not 1 <= self.max_pixels <= LARGEST_IMAGE:
            raise UserError(f"--max_pixels={self.max_pixels}: must be from 1 to {LARGEST_IMAGE}")
        if self.shrink_larger_than and self.shrink_larger_than < SMALLEST_SHRUNK:
            raise UserError(
                f"--shrink_larger_than={self.shrink_larger_than}: must be {SMALLEST_SHRUNK} pixels or more (an image of 32×32, "
                "the smallest short edge), or 0 to shrink no image"
            )
