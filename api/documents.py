"""PDF documents for people: headings, figures, tables, on A4, in Chinese or English.

The font comes with Tanhui and is embedded, so a reader needs none. The same content gives the same
bytes: no time of making is written into the file.
"""

import functools
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    CondPageBreak,
    Flowable,
    Image,
    KeepTogether,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
    TableStyle,
)

from accounting import drawing, fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PDF = "application/pdf"
FIGURE_IN = 9.0
_MARGIN = 18 * mm
_WIDTH = A4[0] - 2 * _MARGIN
_GREEN, _GREY, _STRIPE = colors.HexColor("#0B6E4F"), colors.HexColor("#666666"), "#F3F7F5"


def _style(name: str, size: float, **more: Any) -> ParagraphStyle:
    return ParagraphStyle(
        name, fontName=fonts.FAMILY, fontSize=size, leading=size * 1.45, wordWrap="CJK", **more
    )


_TITLE = _style("title", 18, textColor=_GREEN)
_HEADING = _style("heading", 12, textColor=_GREEN, spaceBefore=10, spaceAfter=4)
_TEXT = _style("text", 9.5)
_SMALL = _style("small", 8, textColor=_GREY)
_CELL = _style("cell", 8.5)
_NUMBER = _style("number", 8.5, alignment=2)
_HEAD = _style("head", 8.5, textColor=colors.white)
_HEAD_NUMBER = _style("head number", 8.5, textColor=colors.white, alignment=2)


@functools.cache
def _register_font() -> None:
    """Reading it takes a tenth of a second: processes that write no document do without."""
    pdfmetrics.registerFont(TTFont(fonts.FAMILY, str(fonts.FILE)))


class Document:
    """A document as it grows; `pdf` gives the bytes."""

    def __init__(self, title: str, subtitle: str = "", *, footer: str = "") -> None:
        _register_font()
        self._title = title
        self._footer = footer
        self._parts: list[Flowable] = [Paragraph(escape(title), _TITLE)]
        if subtitle:
            self._parts.append(Paragraph(escape(subtitle), _SMALL))
        self._parts.append(Spacer(0, 4 * mm))

    def heading(self, text: str) -> None:
        # Not keepWithNext: a table longer than a page would leave this one empty.
        self._parts += [CondPageBreak(40 * mm), Paragraph(escape(text), _HEADING)]

    def text(self, text: str) -> None:
        self._parts.append(Paragraph(escape(text), _TEXT))

    def small(self, text: str) -> None:
        """Small print; a text without spaces breaks anywhere."""
        self._parts.append(Paragraph(escape(text), _SMALL))

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """Name and value, a line each."""
        cells = [
            [Paragraph(escape(name), _SMALL), Paragraph(escape(value), _TEXT)]
            for name, value in rows
        ]
        table = Table(cells, colWidths=[_WIDTH * 0.28, _WIDTH * 0.72], hAlign="LEFT")
        flush = ("LEFTPADDING", (0, 0), (0, -1), 0)
        table.setStyle(TableStyle([("VALIGN", (0, 0), (-1, -1), "MIDDLE"), _tight(), flush]))
        self._parts += [table, Spacer(0, 3 * mm)]

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        numbers: Sequence[int] = (),
        widths: Sequence[float] | None = None,
        total: bool = False,
    ) -> None:
        """A table whose header repeats on every page.

        Columns in `numbers` are set to the right; `widths` are shares of the page; with `total` the
        last row is a sum.
        """
        # Without widths a first column of text gets the room of two of the others.
        even = 1 / (len(header) + 1)
        shares = widths or [2 * even, *[even] * (len(header) - 1)]
        cells = [
            [
                Paragraph(escape(text), _HEAD_NUMBER if column in numbers else _HEAD)
                for column, text in enumerate(header)
            ]
        ]
        cells += [
            [
                Paragraph(escape(text), _NUMBER if column in numbers else _CELL)
                for column, text in enumerate(row)
            ]
            for row in rows
        ]
        style: list[Any] = [
            ("BACKGROUND", (0, 0), (-1, 0), _GREEN),
            ("ROWBACKGROUNDS", (0, 1), (-1, -1), [colors.white, colors.HexColor(_STRIPE)]),
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ("LINEBELOW", (0, -1), (-1, -1), 0.5, _GREEN),
            _tight(),
        ]
        if total:
            style.append(("LINEABOVE", (0, -1), (-1, -1), 0.8, _GREEN))
        table = Table(cells, colWidths=[_WIDTH * share for share in shares], repeatRows=1)
        table.setStyle(TableStyle(style))
        self._parts += [table, Spacer(0, 2 * mm)]

    def figure(
        self, draw: Callable[["Figure"], None], *, height_in: float = 3.0, caption: str = ""
    ) -> None:
        """A plot over the width of the page; `draw` puts it on a figure 9 inches wide."""
        png = drawing.png(draw, width_in=FIGURE_IN, height_in=height_in)
        image = Image(BytesIO(png), width=_WIDTH, height=_WIDTH * height_in / FIGURE_IN)
        self._parts.append(
            KeepTogether([image, *([Paragraph(escape(caption), _SMALL)] if caption else [])])
        )

    def pdf(self) -> bytes:
        """The document as PDF bytes."""
        out = BytesIO()
        template = SimpleDocTemplate(
            out,
            pagesize=A4,
            leftMargin=_MARGIN,
            rightMargin=_MARGIN,
            topMargin=_MARGIN,
            bottomMargin=_MARGIN,
            title=self._title,
            author="Tanhui 碳惠",
            invariant=1,
        )
        template.build(list(self._parts), onFirstPage=self._foot, onLaterPages=self._foot)
        return out.getvalue()

    def _foot(self, canvas: Canvas, template: SimpleDocTemplate) -> None:
        canvas.saveState()
        canvas.setFont(fonts.FAMILY, 7.5)
        canvas.setFillColor(_GREY)
        canvas.drawString(_MARGIN, 10 * mm, self._footer)
        canvas.drawRightString(A4[0] - _MARGIN, 10 * mm, str(template.page))
        canvas.restoreState()


def _tight() -> tuple[Any, ...]:
    return ("TOPPADDING", (0, 0), (-1, -1), 2)


def yuan(fen: int) -> str:
    """Fen as yuan with two places, as people read money."""
    sign = "-" if fen < 0 else ""
    return f"{sign}¥{abs(fen) // 100:,}.{abs(fen) % 100:02d}"
