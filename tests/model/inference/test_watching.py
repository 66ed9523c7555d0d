"""A clip stands in for a camera: the live page, what a browser shows of it, and what is written."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.inference import camera, live_page, watching
from model.inference.predictor import Answer
from pipeline.command import UserError
from tests.model.inference.clips import square_clip
from tests.model.inference.test_video import PREDICTOR, lines_of, white_square


def ask(page: live_page.LivePage, path: str, host: str = "127.0.0.1") -> tuple[int, str, bytes]:
    address = page.url.split("/")[2]
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", path, headers={"Host": f"{host}:{address.rpartition(':')[2]}"})
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read(60_000 if path == "/stream" else None)


@pytest.fixture
def page() -> Iterator[live_page.LivePage]:
    with live_page.LivePage("127.0.0.1", 0) as opened:
        yield opened


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (320, 240), (value, 90, 90)).save(file, "JPEG")
    return file.getvalue()


def test_the_page_shows_the_newest_image(page: live_page.LivePage) -> None:
    assert page.only_this_machine
    page.show(jpeg(1), {"people": []})
    page.show(jpeg(200), {"people": [1, 2]})
    assert ask(page, "/image.jpg") == (200, "image/jpeg", jpeg(200))
    assert json.loads(ask(page, "/people.json")[2]) == {"people": [1, 2]}
    status, kind, html = ask(page, "/")
    assert status == 200 and kind.startswith("text/html") and b'src="/stream"' in html
    assert ask(page, "/etc/passwd")[0] == 404


def test_the_page_is_for_its_own_machine(page: live_page.LivePage) -> None:
    """A name that somebody else lets lead to 127.0.0.1 shows nothing."""
    page.show(jpeg(1), {"people": []})
    assert ask(page, "/image.jpg", host="evil.example")[0] == 403
    assert ask(page, "/image.jpg", host="localhost")[0] == 200
    with pytest.raises(UserError, match=r"--host=127.0.0.1 --port=\d+: cannot listen there"):
        live_page.LivePage("127.0.0.1", int(page.url.rpartition(":")[2].rstrip("/")))


def test_a_stream_gives_one_image_after_the_other(page: live_page.LivePage) -> None:
    def film() -> None:
        for value in range(200):
            page.show(jpeg(value), {"people": []})
            time.sleep(0.005)

    thread = threading.Thread(target=film)
    thread.start()
    status, kind, content = ask(page, "/stream")
    thread.join()
    assert status == 200 and kind == "multipart/x-mixed-replace; boundary=image"
    images = [part.partition(b"\r\n\r\n")[2] for part in content.split(b"--image\r\n")[1:-1]]
    assert len(images) > 5 and all(Image.open(io.BytesIO(one)).size == (320, 240) for one in images)


def test_a_reader_that_goes_away_is_no_fault(page: live_page.LivePage, capfd: pytest.CaptureFixture[str]) -> None:
    """Its connection is reset while the page waits for news; the next one is answered, and nothing is complained about."""
    address = ("127.0.0.1", int(page.url.rpartition(":")[2].rstrip("/")))
    for path in ("/people.json", "/image.jpg", "/stream"):
        gone = socket.create_connection(address)
        gone.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        time.sleep(0.2)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        gone.close()
    for value in range(3):
        time.sleep(0.1)
        page.show(jpeg(value), {"people": []})
    assert ask(page, "/image.jpg")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_slow_reader_gets_the_newest_frame(tmp_path: Path) -> None:
    source = f"camera:{square_clip(tmp_path / 'walk.mp4', 25)}"  # one second
    with camera.Camera(source) as opened:
        first = opened.newest(-1, 5)
        time.sleep(0.5)
        later = opened.newest(0, 5)
        assert first is not None and later is not None and first.index < 8 <= later.index <= 20
        assert later.time == pytest.approx(later.index / 25, abs=0.01) and later.pixels.shape == (64, 96, 3)
        while not opened.ended:
            time.sleep(0.05)
        assert opened.came == 25 and opened.error == ""


@pytest.mark.parametrize("source", ["camera:77", "camera:/nowhere/at/all", "rtsp://127.0.0.1:9/none"])
def test_a_camera_that_is_not_there(source: str) -> None:
    with pytest.raises(UserError, match=f"--input={source}: cannot be opened"):
        camera.Camera(source)


def test_what_a_camera_sees_is_written_and_shown(tmp_path: Path) -> None:
    """While the clip plays, the page has its images; at its end, the file has a line for each that was looked at."""
    seen: list[dict[str, Any]] = []

    def answer(images: Sequence[bytes]) -> Answer:
        time.sleep(0.08)  # slower than the camera
        return white_square(images)

    class Noted(live_page.LivePage):
        def show(self, jpeg: bytes, people: dict[str, Any]) -> None:
            super().show(jpeg, people)
            assert Image.open(io.BytesIO(ask(self, "/image.jpg")[2])).size == (96, 64)
            seen.append(json.loads(ask(self, "/people.json")[2]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "LivePage", Noted)
        source = f"camera:{square_clip(tmp_path / 'walk.mp4', 25)}"
        predictor = dataclasses.replace(PREDICTOR, answer=answer)
        summary = watching.watch(predictor, source, tmp_path / "out", track=True)
    lines = lines_of(tmp_path / "out")
    assert summary.came == 25 and 3 <= summary.looked_at == len(lines) < 20 and summary.identities == 1
    assert [{**line, "rate": shown["rate"]} for line, shown in zip(lines, seen, strict=True)] == seen
    assert {person["track_id"] for line in lines for person in line["people"]} == {1}
    assert f"of the {summary.came} that came" in str(summary)


def test_ctrl_c_and_a_time_end_it(tmp_path: Path) -> None:
    source = f"camera:{square_clip(tmp_path / 'walk.mp4', 250)}"
    threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
    summary = watching.watch(PREDICTOR, source, tmp_path / "out")
    assert 1 <= summary.looked_at == len(lines_of(tmp_path / "out")) and summary.came < 200
    summary = watching.watch(PREDICTOR, source, tmp_path / "out", seconds=0.3)
    assert 1 <= summary.looked_at <= 8


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_browser_shows_the_people(page: live_page.LivePage, tmp_path: Path) -> None:
    """Headless Chromium paints the newest image with its box, and the line below it."""
    image = np.full((240, 320, 3), 40, np.uint8)
    image[60:140, 100:160] = 250
    (people,) = PREDICTOR([image])
    file = io.BytesIO()
    Image.fromarray(people.draw(image)).save(file, "JPEG", quality=95)

    def film(stop: threading.Event) -> None:
        while not stop.wait(0.05):
            page.show(file.getvalue(), {"people": [1], "time": 12.3, "rate": 4.5})

    stop = threading.Event()
    thread = threading.Thread(target=film, args=(stop,))
    thread.start()
    try:
        chromium = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=640,480",
            f"--user-data-dir={tmp_path / 'profile'}", "--timeout=4000", f"--screenshot={tmp_path / 'page.png'}", page.url,
        ]  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(chromium, timeout=60, check=False, capture_output=True)
    finally:
        stop.set()
        thread.join()
    shot = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    grey, white = (np.abs(shot - value).max(-1) < 12 for value in (40, 250))
    box = (shot[..., :2].min(-1) > 150) & (shot[..., 2] < shot[..., 0] - 40)  # yellow, blurred by the JPEG
    assert grey.sum() > 40_000 and white.sum() > 3_000 and box.sum() > 100
