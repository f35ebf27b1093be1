"""Film strips, pixel by pixel."""

import cv2
import numpy as np

from mow.evaluate.film_strip import COLUMN, ROW, SCALE, Strip, canvas, draw_film

RED = (205, 30, 30)


def strip(name="tiny:catch", *, shown=(True, True, True, False), seed=0):
    rng = np.random.default_rng(seed)
    real, imagined = rng.integers(0, 200, (2, len(shown), 64, 64, 3), dtype=np.uint8)
    real_end, imagined_end = np.zeros((2, len(shown)), np.bool_)
    real_end[3], imagined_end[2] = True, True
    led_to = np.array((True, *shown[:-1]))
    return Strip(name, real, imagined, np.array(shown), led_to, real_end, imagined_end)


def cell(picture, row, column):
    return picture[row * ROW : row * ROW + 64, column * COLUMN : column * COLUMN + 64]


def test_frames_stand_side_by_side_and_are_blank_behind_the_end():
    one = strip()
    picture = canvas(one)
    assert picture.shape == (2 * ROW, 4 * COLUMN, 3)
    for row, frames in enumerate((one.real, one.imagined)):
        for column in range(3):
            assert (cell(picture, row, column) == frames[column]).all()
        assert (cell(picture, row, 3) == 255).all()


def test_ends_are_marked_below_their_row():
    picture = canvas(strip())
    for row, ending in ((0, 3), (1, 2)):
        for column in range(4):
            below = picture[row * ROW + 66 : row * ROW + 70, column * COLUMN : column * COLUMN + 64]
            assert (below == RED).all() if column == ending else (below == 255).all()


def test_every_pixel_is_in_the_picture():
    strips = [strip(), strip("tiny:$goal$", seed=1)]
    png = draw_film(strips, ("a title",), num_context=2)
    assert png == draw_film(strips, ("a title",), num_context=2), "same bytes"
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    for one in strips:
        frame = cell(canvas(one), 1, 1).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        corner = (picture[:, :, None] == frame[0, 0]).all(axis=(-1, -2))
        places = zip(*np.nonzero(corner), strict=True)
        assert any((picture[y : y + 128, x : x + 128] == frame).all() for y, x in places if y + 128 <= len(picture))
