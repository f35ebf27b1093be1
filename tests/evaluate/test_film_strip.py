import cv2
import numpy as np
import pytest

from mow.evaluate.film_strip import (
    COLUMN,
    FRAME,
    LABELS,
    LINE,
    MARGIN,
    ROW,
    SCALE,
    SEAM,
    STRIP,
    Strip,
    corner,
    draw_film,
    png,
)

RED = (205, 30, 30, 255)


def strip(name="tiny:catch", *, shown=(True, True, True, False), seed=0):
    rng = np.random.default_rng(seed)
    real, imagined = rng.integers(0, 200, (2, len(shown), 64, 64, 3), dtype=np.uint8)
    real_end, imagined_end = np.zeros((2, len(shown)), np.bool_)
    real_end[3], imagined_end[2] = True, True
    led_to = np.array((True, *shown[:-1]))
    return Strip(name, real, imagined, np.array(shown), led_to, real_end, imagined_end)


def cell(picture, place):
    y, x = place
    return picture[y : y + FRAME, x : x + FRAME]


def drawn(strips, text=("a title",), num_context=2):
    def place(index, row, column):
        return corner(index, row, column, num_context=num_context, num_lines=len(text))

    return draw_film(strips, text, num_context=num_context), place


def test_the_first_frame_stands_where_it_should():
    # Margin, no text, heading; margin and row names: 20 + 76 and 20 + 130.
    assert corner(0, 0, 0, num_context=2, num_lines=0) == (96, 150)
    # One strip, one row and three columns on, behind the seam.
    assert corner(1, 1, 3, num_context=2, num_lines=1) == (96 + LINE + STRIP + ROW, 150 + 3 * COLUMN + SEAM)


def test_every_pixel_of_every_frame_is_in_the_picture():
    strips = [strip(), strip("tiny:goal", seed=1)]
    picture, place = drawn(strips)
    assert picture.shape == (2 * MARGIN + LINE + 2 * STRIP, 2 * MARGIN + LABELS + 4 * COLUMN + SEAM, 4)
    for index, one in enumerate(strips):
        for row, frames in enumerate((one.real, one.imagined)):
            for column in range(3):
                block = cell(picture, place(index, row, column))
                for dy in range(SCALE):
                    for dx in range(SCALE):
                        assert (block[dy::SCALE, dx::SCALE, :3] == frames[column]).all()
                        assert (block[dy::SCALE, dx::SCALE, 3] == 255).all()


def test_behind_the_end_it_is_blank():
    picture, place = drawn([strip()])
    for row in range(2):
        assert (cell(picture, place(0, row, 3)) == (255, 255, 255, 0)).all()  # white, and nothing of it


def test_a_number_stands_above_every_step_taken_and_no_other():
    picture, place = drawn([strip(shown=(True, True, False, False))])
    above = [picture[y - 30 : y, x : x + FRAME] for y, x in (place(0, 0, column) for column in range(4))]
    # Two frames, the step that ends the episode, nothing behind it.
    assert [bool(area[..., 3].any()) for area in above] == [True, True, True, False]


def test_ends_are_marked_below_their_row():
    picture, place = drawn([strip()])
    for row, ending in ((0, 3), (1, 2)):
        for column in range(4):
            y, x = place(0, row, column)
            below = picture[y + FRAME + 2 : y + FRAME + 8, x : x + FRAME]
            assert (below == RED).all() if column == ending else not (below == RED).all(axis=-1).any()


def test_a_line_parts_what_was_seen_from_what_was_imagined():
    picture, place = drawn([strip()])
    y, x = place(0, 0, 2)
    gap = picture[y : y + ROW + FRAME, x - SEAM : x, 3]
    assert (gap == 255).all(axis=0).sum() == 3  # columns of pixels


def test_a_long_line_of_text_widens_the_picture():
    short, long = (drawn([strip()], (text,))[0] for text in ("a title", "a title " * 20))
    assert long.shape[1] > short.shape[1]
    above = long[MARGIN : MARGIN + LINE, :, 3]
    assert not above[:, :MARGIN].any()
    assert above[:, short.shape[1] :].any()
    assert not above[:, -MARGIN + 2 :].any()  # the last space


def test_the_file_has_the_pixels_of_the_picture():
    picture, _ = drawn([strip()])
    found = cv2.imdecode(np.frombuffer(png(picture), np.uint8), cv2.IMREAD_UNCHANGED)  # BGR and opacity
    assert (found[:, :, [2, 1, 0, 3]] == picture).all()


def test_strips_must_match():
    with pytest.raises(ValueError, match=r"got \[4, 5\]"):
        draw_film([strip(), strip(shown=(True,) * 5)], (), num_context=2)
    with pytest.raises(ValueError, match=r"got \[\]"):
        draw_film([], (), num_context=2)
