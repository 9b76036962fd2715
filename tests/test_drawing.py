"""Plots show Chinese on a machine that has no font but the one that comes with Tanhui."""

import io

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from accounting import drawing, fonts


def saying(text: str) -> bytes:
    return drawing.png(lambda figure: label(figure, text), width_in=2, height_in=1)


def label(figure: Figure, text: str) -> None:
    figure.text(0.1, 0.5, text, fontsize=30)


def test_the_font_is_the_one_that_comes_with_the_project() -> None:
    saying("碳")  # The first drawing of a process makes the font known.
    assert str(font_manager.findfont(fonts.FAMILY)) == str(fonts.FILE)


@pytest.mark.parametrize("text", ["衢州碳惠", "CO₂ 2,396 g", "¥0.2／千积分", "龘 ≤ 30 %", "−5 °C"])
def test_chinese_latin_and_units_have_glyphs(text: str) -> None:
    # A missing glyph is a warning, and warnings are errors here.
    assert Image.open(io.BytesIO(saying(text))).size == (300, 150)


def test_a_missing_glyph_does_not_pass_unseen() -> None:
    with pytest.warns(UserWarning, match=r"missing from font"):
        saying("\U0001f68c")
    assert saying("碳") != saying("惠")


def test_the_same_drawing_gives_the_same_bytes() -> None:
    assert saying("碳惠") == saying("碳惠")
