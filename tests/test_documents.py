"""Documents for people: Chinese and English shown, sums and long tables whole, bytes repeatable."""

from io import BytesIO

import pytest
from matplotlib.figure import Figure
from pypdf import PdfReader

from accounting.tables import csv_text
from api.documents import Document, yuan


def text_of(pdf: bytes) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(BytesIO(pdf)).pages)


def bars(figure: Figure) -> None:
    figure.subplots().bar([0, 1], [3, 5])


def sample(rows: int = 3) -> Document:
    document = Document("商户结算单", "共富商城 · 2026-05", footer="digest")
    document.facts([("编号", "stm_1"), ("<b>&", "a < b & c")])
    document.heading("按奖品 By reward")
    document.table(
        ["奖品", "¥"], [[f"券 {n}", f"{n}.00"] for n in range(rows)], numbers=[1], total=True
    )
    document.figure(bars, caption="每日核销")
    return document


def test_chinese_and_markup_are_shown_as_they_are() -> None:
    shown = text_of(sample().pdf())
    for text in (
        "商户结算单",
        "共富商城",
        "券 2",
        "2.00",
        "a < b & c",
        "<b>&",
        "每日核销",
        "digest",
    ):
        assert text in shown


def test_the_font_is_in_the_file_so_that_a_reader_needs_none() -> None:
    page = PdfReader(BytesIO(sample().pdf())).pages[0]
    used = [font.get_object() for font in page["/Resources"]["/Font"].values()]
    ours = [font for font in used if "WenQuanYi" in font["/BaseFont"]]
    assert ours
    assert all("/FontFile2" in font["/FontDescriptor"] for font in ours)


def test_a_long_table_goes_on_under_its_header() -> None:
    pages = PdfReader(BytesIO(sample(rows=120).pdf())).pages
    assert len(pages) > 2
    assert all("奖品" in page.extract_text() for page in pages[:3])


def test_the_same_content_gives_the_same_bytes() -> None:
    assert sample().pdf() == sample().pdf()


@pytest.mark.parametrize(
    ("fen", "shown"),
    [(0, "¥0.00"), (5, "¥0.05"), (-5, "-¥0.05"), (123_456_789, "¥1,234,567.89")],
)
def test_fen_are_shown_as_yuan(fen: int, shown: str) -> None:
    assert yuan(fen) == shown


def test_a_cell_that_would_start_a_formula_is_text_and_a_number_stays_one() -> None:
    cells = ["=1+1", "@x", "-1", -1, None, 'say "hi", ok', "共富"]
    table = csv_text(["a", "b"], [[cell, 0] for cell in cells])
    assert table.split("\r\n") == [
        "\ufeffa,b", "'=1+1,0", "'@x,0", "'-1,0", "-1,0", ",0", '"say ""hi"", ok",0', "共富,0", "",
    ]  # fmt: skip
