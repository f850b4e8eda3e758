"""The contact sheet: pictures, titles and prompts where they belong."""

import numpy as np
from PIL import Image

from trainer.sampling.contact_sheet import Row, contact_sheet


def test_a_sheet_has_its_pictures_where_they_belong():
    colours = [["red", "lime"], ["blue", None]]
    rows = [
        Row(f"a prompt of many words, number {n}", [name and Image.new("RGB", (64, 64), name) for name in line])
        for n, line in enumerate(colours)
    ]
    sheet = contact_sheet(rows, ["base", "epoch 4"], "A title", "and a note", size=64)
    pixels = np.array(sheet)
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (pixels == colour).all(-1).sum() == 64 * 64
    red, lime, blue = (
        np.argwhere((pixels == colour).all(-1)).min(0) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    )
    assert red[0] == lime[0] and red[1] == blue[1] and lime[1] - red[1] == blue[0] - red[0] > 64
    assert (pixels[:, : red[1]] < 128).any() and (pixels[: red[0]] < 128).any()  # labels and heads are there


def test_long_words_stay_in_their_column():
    row = Row("averyverylongwordthatfitsnowhere" * 2, [Image.new("RGB", (96, 96), "red")])
    pixels = np.array(contact_sheet([row], size=96))
    assert (pixels == (255, 0, 0)).all(-1).sum() == 96 * 96
    assert (pixels[:, -1] == 255).all()
