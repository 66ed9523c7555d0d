"""Rendered clips: the same arguments, the same pixels; people who move smoothly and keep their numbers."""

from __future__ import annotations

import numpy as np

from pipeline.synthetic.clip import render_clip


def test_people_walk_and_keep_their_numbers() -> None:
    frames = list(render_clip(3, 50, 160, 120, people=3))
    assert len(frames) == 50 and all(frame.pixels.shape == (120, 160, 3) for frame in frames)
    again = next(iter(render_clip(3, 1, 160, 120, people=3)))
    np.testing.assert_array_equal(again.pixels, frames[0].pixels)
    assert again.annotations == frames[0].annotations
    assert not np.array_equal(next(iter(render_clip(4, 1, 160, 120))).pixels, frames[0].pixels)
    places = {number: np.full((50, 17, 2), np.nan) for number in (1, 2, 3)}
    for number, frame in enumerate(frames):
        numbers = [person["track_id"] for person in frame.annotations]
        assert len(set(numbers)) == len(numbers) >= 1
        for person in frame.annotations:
            points = np.reshape(person["keypoints"], (17, 3))
            x, y, width, height = person["bbox"]
            seen = points[points[:, 2] == 2, :2]
            assert (seen >= (x - 1, y - 1)).all() and (seen <= (x + width + 1, y + height + 1)).all()
            places[person["track_id"]][number, points[:, 2] > 0] = points[points[:, 2] > 0, :2]
    for track in places.values():
        steps = np.abs(np.diff(track, axis=0)).max(-1)
        assert np.nanmax(steps) < 8 and np.nanmax(np.abs(track[-1] - track[0])) > 2  # pixels: nobody jumps, everybody moves
    first, last = (np.asarray(frame.pixels, int) for frame in (frames[0], frames[-1]))
    assert (np.abs(first - last).max(-1) < 3).mean() > 0.4  # the background stays
