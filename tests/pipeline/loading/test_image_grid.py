from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline import anchors
from pipeline.anchors import AnchorConfig
from pipeline.loading.image_grid import ImageGrid

SIZE = (150, 210)
CONFIGS = (
    AnchorConfig(),
    AnchorConfig(rounded=False),
    AnchorConfig(canvas_strides=True),
    AnchorConfig(strides=(7, 20), sizes=(21.3, 55.5), aspect_ratios=(0.3, 1.7)),
)


@pytest.mark.parametrize("canvas", [(160, 224), (256, 224), (352, 512)])
@pytest.mark.parametrize("config", CONFIGS)
def test_names_and_positions_are_those_of_the_definition(config: AnchorConfig, canvas: tuple[int, int]) -> None:
    grid = ImageGrid.of(config, SIZE, canvas)
    own, whole = anchors.grid(config, *SIZE, canvas), anchors.grid(config, *canvas)
    names = tf.range(grid.size)
    assert int(grid.size) == len(own)
    np.testing.assert_array_equal(grid.corners(names), own)
    np.testing.assert_array_equal(grid.names(*grid.locate(names)), names)
    positions = grid.positions(names).numpy()
    assert (np.diff(positions) > 0).all()  # every anchor has a place of its own, in the same order
    np.testing.assert_array_equal(whole[positions], own)


def test_strides_of_a_canvas_whose_p5_is_odd() -> None:
    config = AnchorConfig(canvas_strides=True)
    assert anchors.level_strides(config, (352, 384)) == ((4, 4), (8, 8), (16, 16), (32, 32), (58, 64))
    assert anchors.level_shapes(config, 352, 384)[-1] == (6, 6)  # not the 7 rows that 352 / 58 would be
    assert anchors.level_shapes(config, 342, 255, (352, 384))[-1] == (6, 4)
