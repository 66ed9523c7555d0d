"""Clips in; a line per frame and the drawn clip out."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.config import TINY
from model.inference.predictor import Answer, Predictor
from model.inference.video import predict_clip
from model.inference.video_reader import seconds_of
from model.interrupt import InterruptedWorkError
from pipeline.command import UserError
from pipeline.skeleton import COCO_PERSON, Skeleton
from pipeline.synthetic.clip import ClipFrame, render_clip
from tests.model.inference.clips import SQUARE, read_clip, square_at, square_clip, write_clip
from tests.model.inference.identities import idf1

SKELETON = Skeleton("person", ("nose", "left_eye"), ((0, 1),), (0, 1), (0.1, 0.1))


def white_square(images: Sequence[bytes]) -> Answer:
    """The box around what is white in each image, and two keypoints on its diagonal."""
    boxes = np.zeros((len(images), 1, 4), np.float32)
    for i, encoded in enumerate(images):
        rows, columns = np.nonzero(np.asarray(Image.open(io.BytesIO(encoded)))[..., 0] > 145)
        boxes[i, 0] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return {
        "num_detections": np.ones(len(images), np.int32),
        "boxes": boxes,
        "scores": np.full((len(images), 1), 0.875, np.float32),
        "keypoints": boxes.reshape(len(images), 1, 2, 2),
        "keypoint_scores": np.full((len(images), 1, 2), 0.5, np.float32),
    }


PREDICTOR = Predictor(TINY, SKELETON, white_square, lambda height, width: (64, 64))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def assert_square(line: dict[str, Any], number: int, height: int = 64, width: int = 96) -> None:
    (person,) = line["people"]
    np.testing.assert_allclose(person["bbox"], [*square_at(number, height, width), SQUARE, SQUARE], atol=1)
    assert person["image_id"] == line["frame"] and person["score"] == 0.875 and len(person["keypoints"]) == 6


@pytest.mark.parametrize(("ending", "turns"), [("mp4", 1), ("mkv", 0), ("mov", 2), ("mp4", 0)])
def test_a_clip_keeps_its_size_times_rotation_and_sound(ending: str, turns: int, tmp_path: Path) -> None:
    source = square_clip(tmp_path / f"walk.{ending}", turns=turns)
    summary = predict_clip(PREDICTOR, source, tmp_path / "out", batch_size=3)
    lines = lines_of(tmp_path / "out")
    assert [line["frame"] for line in lines] == list(range(20))
    for number, line in enumerate(lines):
        assert_square(line, number)
        assert line["time"] == pytest.approx(number / 25, abs=0.0015)
    before, after = read_clip(source), read_clip(tmp_path / "out" / f"walk.{ending}")
    assert after.size == before.size == ((96, 64) if turns == 1 else (64, 96))
    assert after.rate == before.rate == 25 and after.rotation % 360 == before.rotation % 360 == 90 * turns
    np.testing.assert_allclose(after.times, before.times, atol=0.0015)
    assert after.sound == before.sound and len(after.sound) > 10
    np.testing.assert_allclose(after.sound_times, before.sound_times, atol=0.0015)
    changed = np.abs(after.pixels.astype(int) - before.pixels).max(-1) > 60
    assert 0.01 < changed.mean() < 0.2  # lines and points, and the rest is as it was
    assert (summary.frames, summary.looked_at, summary.people, summary.broken) == (20, 20, 20, "")
    assert f"written: {summary.clip}" in str(summary) and "frames/s" in str(summary)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.jsonl", f"walk.{ending}"]


def test_a_part_of_a_clip_and_every_third_frame(tmp_path: Path) -> None:
    source = square_clip(tmp_path / "walk.mp4", 50)
    summary = predict_clip(PREDICTOR, source, tmp_path / "out", every=3, start=0.6, end=1.4, batch_size=2)
    lines = lines_of(tmp_path / "out")
    assert [line["frame"] for line in lines] == [0, 3, 6, 9, 12, 15, 18]
    for line in lines:
        assert line["time"] == pytest.approx(0.6 + line["frame"] / 25, abs=0.0015)
        assert_square(line, 15 + line["frame"])
    before, after = read_clip(source), read_clip(tmp_path / "out" / "walk.mp4")
    np.testing.assert_allclose(after.times, np.arange(20) / 25, atol=0.0015)  # between two looks, too
    assert (summary.frames, summary.looked_at) == (20, 7)
    assert set(after.sound) <= set(before.sound) and len(after.sound) == pytest.approx(0.8 * 16_000 / 1024, abs=2)
    first = before.sound.index(after.sound[0])
    np.testing.assert_allclose(after.sound_times[0], before.sound_times[first] - 0.6, atol=0.002)  # in step with the frames
    with pytest.raises(UserError, match=r"--from=9: .*walk.mp4 ends at 2\.0\d s"):
        predict_clip(PREDICTOR, source, tmp_path / "out", start=9)
    with pytest.raises(UserError, match=r"--to=1: must be later than --from=2"):
        predict_clip(PREDICTOR, source, tmp_path / "out", start=2, end=1)


def test_a_variable_frame_rate_is_kept_and_said(tmp_path: Path) -> None:
    milliseconds = [0, 40, 80, 280, 300, 320, 400, 900, 940]
    source = square_clip(tmp_path / "phone.mp4", 9, milliseconds=milliseconds)
    summary = predict_clip(PREDICTOR, source, tmp_path / "out")
    np.testing.assert_allclose([line["time"] for line in lines_of(tmp_path / "out")], np.array(milliseconds) / 1000, atol=1e-3)
    np.testing.assert_allclose(read_clip(tmp_path / "out" / "phone.mp4").times, np.array(milliseconds) / 1000, atol=1e-3)
    assert "variable frame rate: 20 to 500 ms" in str(summary)


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_a_clip_that_is_cut_short_gives_what_is_there(ending: str, tmp_path: Path) -> None:
    """Matroska, and an .mp4 in fragments; their ends are missing."""
    options = {"movflags": "frag_keyframe+empty_moov"} if ending == "mp4" else {}
    whole = square_clip(tmp_path / f"whole.{ending}", 100, options=options).read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(whole[: len(whole) // 2])
    summary = predict_clip(PREDICTOR, cut, tmp_path / "out")
    assert 20 < summary.frames < 80 and len(lines_of(tmp_path / "out")) == summary.frames
    assert len(read_clip(tmp_path / "out" / f"cut.{ending}").times) == summary.frames
    if ending == "mkv":
        assert "states 4.10 s" in summary.broken


def test_what_is_no_clip_is_refused_in_a_line(tmp_path: Path) -> None:
    whole = square_clip(tmp_path / "whole.mp4", 50).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index, at the end, is missing
    (tmp_path / "text.mp4").write_text("not a clip\n" * 50)
    (tmp_path / "empty.mkv").write_bytes(b"")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/clip.ts\n")
    for name in ("cut.mp4", "text.mp4", "empty.mkv", "list.mp4"):
        with pytest.raises(UserError, match=f"{name}: cannot be opened as a video .*copy it again"):
            predict_clip(PREDICTOR, tmp_path / name, tmp_path / "out")
    with pytest.raises(UserError, match=r"nowhere.mp4: no such file"):
        predict_clip(PREDICTOR, tmp_path / "nowhere.mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_song_has_no_video(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        tone: Any = container.add_stream("aac", rate=16_000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16_000
        container.mux(tone.encode(samples))
        container.mux(tone.encode(None))
    with pytest.raises(UserError, match=r"song.mp4: no video in it, but audio"):
        predict_clip(PREDICTOR, tmp_path / "song.mp4", tmp_path / "out")


def test_odd_sides_and_colours_stay(tmp_path: Path) -> None:
    source = square_clip(tmp_path / "odd.mkv", 5, height=63, width=97, pix_fmt="yuv444p", sound=False)
    summary = predict_clip(PREDICTOR, source, tmp_path / "out")
    before, after = read_clip(source), read_clip(tmp_path / "out" / "odd.mkv")
    assert after.size == (63, 97) and "97×63 is odd" in str(summary) and not after.sound
    assert after.colours == before.colours
    assert np.abs(after.pixels[:, -10:, -10:].astype(int) - before.pixels[:, -10:, -10:]).mean() < 4


def test_ctrl_c_ends_with_whole_files(tmp_path: Path) -> None:
    asked = []

    def answer(images: Sequence[bytes]) -> Answer:
        asked.append(len(images))
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return white_square(images)

    source = square_clip(tmp_path / "walk.mp4", 60)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedWorkError, match=r"stopped after 12 of about 60 frames; .* whole") as stopped:
        predict_clip(dataclasses.replace(PREDICTOR, answer=answer), source, tmp_path / "out", batch_size=4)
    assert stopped.value.status == 130 and signal.getsignal(signal.SIGINT) is handler
    after = read_clip(tmp_path / "out" / "walk.mp4")
    assert len(after.times) == len(lines_of(tmp_path / "out")) == 12
    assert 0.3 < after.sound_times[-1] < 0.6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.jsonl", "walk.mp4"]


def test_the_source_is_never_replaced_and_only_own_drawings_are_removed(tmp_path: Path) -> None:
    source = square_clip(tmp_path / "walk.mp4")
    before = source.read_bytes()
    with pytest.raises(UserError, match=r"would replace --input=.*walk.mp4"):
        predict_clip(PREDICTOR, source, tmp_path)
    predict_clip(PREDICTOR, source, tmp_path, draw=False)
    assert source.read_bytes() == before  # it carries no mark of a drawing
    predict_clip(PREDICTOR, source, tmp_path / "out")
    summary = predict_clip(PREDICTOR, source, tmp_path / "out", draw=False)
    assert "removed" in str(summary) and summary.clip is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]


def test_without_pyav_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"PyAV, which is not installed; pip install '\.\[video\]'$"):
        predict_clip(PREDICTOR, tmp_path / "walk.mp4", tmp_path / "out")


def test_times_as_people_write_them() -> None:
    assert [seconds_of(text, "--to") for text in (None, "12.5", "1:02.5", "1:00:00")] == [None, 12.5, 62.5, 3600]
    for text in ("soon", "-3", "1:2:3:4", ""):
        with pytest.raises(UserError, match=r"--to=.*: must be a time"):
            seconds_of(text, "--to")


def true_answers(frames: Sequence[ClipFrame], order: np.random.Generator) -> Callable[[Sequence[bytes]], Answer]:
    """A model that answers with the truth of one frame after the other; the people come in any order."""
    rest = iter(frames)

    def answer(images: Sequence[bytes]) -> Answer:
        found: dict[str, Any] = {
            "num_detections": np.zeros(len(images), np.int32),
            "boxes": np.zeros((len(images), 9, 4), np.float32),
            "scores": np.ones((len(images), 9), np.float32),
            "keypoints": np.zeros((len(images), 9, 17, 2), np.float32),
            "keypoint_scores": np.ones((len(images), 9, 17), np.float32),
        }
        for i, (_, frame) in enumerate(zip(images, rest, strict=False)):
            found["num_detections"][i] = len(frame.annotations)
            for place, number in enumerate(order.permutation(len(frame.annotations))):
                person = frame.annotations[number]
                x, y, width, height = person["bbox"]
                found["boxes"][i, place] = x, y, x + width, y + height
                found["keypoints"][i, place] = np.reshape(person["keypoints"], (17, 3))[:, :2]
        return found

    return answer


def test_people_who_walk_keep_their_numbers(tmp_path: Path) -> None:
    """Four rendered people for five seconds, who pass before and behind each other."""
    frames = list(render_clip(3, 125, 192, 144, people=4))
    assert {a["track_id"] for frame in frames for a in frame.annotations} == {1, 2, 3, 4}
    assert any(len(frame.annotations) < 4 for frame in frames)  # somebody is hidden for a while
    source = write_clip(tmp_path / "walkers.mp4", [frame.pixels for frame in frames], sound=False)
    answer = true_answers(frames, np.random.default_rng(0))
    predictor = Predictor(TINY, COCO_PERSON, answer, lambda height, width: (144, 192), max_batch=1)
    summary = predict_clip(predictor, source, tmp_path / "out", track=True, draw=False)
    lines = lines_of(tmp_path / "out")
    truth = [{a["track_id"]: a["bbox"] for a in frame.annotations} for frame in frames]
    found = [{person["track_id"]: person["bbox"] for person in line["people"]} for line in lines]
    assert all(len(line["people"]) == len(one) for line, one in zip(lines, found, strict=True))  # each number once
    for line, frame in zip(lines, frames, strict=True):
        expected = sorted(np.reshape(a["keypoints"], (17, 3))[:, :2].ravel().tolist() for a in frame.annotations)
        got = sorted(np.reshape(p["keypoints"], (17, 3))[:, :2].ravel().tolist() for p in line["people"])
        np.testing.assert_allclose(got, expected, atol=0.01)
    assert idf1(truth, found) >= 0.9
    assert summary.identities is not None and 4 <= summary.identities <= 6
