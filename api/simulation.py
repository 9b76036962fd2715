"""`tanhui simulate`: a table and plots of what a change would cost over the coming months."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.table import Table

from accounting import accounts, clock, drawing
from accounting.drawing import COLOURS
from accounting.quantities import MG_PER_G
from footprint import summaries
from points import flows, liability, simulating, terms
from points.flows import Flows
from points.simulating import EXPIRY_MONTHS, Assumptions, Change, City, Month

__all__ = ("Assumptions", "Change", "compare", "observed", "plots", "summary", "tables")

# A city the size of Quzhou: 2,334,000 accounts, of which 12 % are active and save 17.6 kg a month,
# 59,200 t a year; a point a gram, 2 yuan for 1,000 points; a twelfth of what is there is spent.
EXAMPLE = City(
    residents=2_334_000,
    active=280_080,
    grams=17_600,
    points_per_gram=1.0,
    fen_per_1000_points=200,
    spent_share=1 / 12,
)
FEN_PER_WAN_YUAN = 1_000_000


def observed(now: datetime) -> City | None:
    """The city as it stands, from the summaries and the wallets; None before a full month."""
    this_month = clock.city_month(now)
    last_month, next_month = clock.add_months(this_month, -1), clock.add_months(this_month, 1)
    part = summaries.taking_part(last_month)
    if not part.accounts:
        return None
    found, owed = flows.refresh(now), liability.add_up(now)
    spent = [_spent(found, month) for month in (last_month, this_month)]
    points = {
        funder: flow.outstanding for funder, flow in found.funders.items() if flow.outstanding > 0
    }
    known, whole = terms.current(), sum(points.values())
    worth = sum(number * known.face_value(funder) for funder, number in points.items())
    stock = [0] * EXPIRY_MONTHS
    for lots in owed.lots.values():
        for month, number in lots.items():
            left = liability.months_until(month, next_month)
            stock[min(left, EXPIRY_MONTHS - 1)] += number
    return City(
        residents=accounts.count(),
        active=part.accounts,
        grams=part.mg / MG_PER_G / part.accounts,
        points_per_gram=part.points * MG_PER_G / part.mg,
        fen_per_1000_points=worth // whole if whole else EXAMPLE.fen_per_1000_points,
        # A city in its second month has spent nothing in its first.
        spent_share=float(liability.spent_share(spent[0] or spent[1], whole)),
        stock=tuple(stock),
    )


def _spent(found: Flows, month: str) -> int:
    return sum(flow.spent_by_month.get(month, 0) for flow in found.funders.values())


def compare(
    city: City, change: Change, *, first: str, months: int, seed: int, assume: Assumptions
) -> "Comparison":
    """The coming months as they are and with a change, beginning with the month `first`."""
    names = [clock.add_months(first, number) for number in range(months)]
    as_it_is = simulating.run(city, Change(), names, seed=seed, assume=assume)
    changed = simulating.run(city, change, names, seed=seed, assume=assume)
    return Comparison(change, as_it_is, changed)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The coming months as they are and with a change."""

    change: Change
    as_it_is: Sequence[Month]
    changed: Sequence[Month]


Columns = tuple[tuple[str, Callable[[Month], int], int], ...]
# M is a million points. Two tables, so that each fits a terminal of 80 columns.
POINTS: Columns = (
    ("active", lambda month: month.active, 1),
    ("saved t", lambda month: month.saved_kg, 1_000),
    ("issued M", lambda month: month.issued, 1_000_000),
    ("spent M", lambda month: month.spent, 1_000_000),
    ("lapsed M", lambda month: month.lapsed, 1_000_000),
    ("outstanding M", lambda month: month.outstanding, 1_000_000),
)
MONEY: Columns = (
    ("liability 万元", lambda month: month.liability_fen, FEN_PER_WAN_YUAN),
    ("will lapse M", lambda month: month.expected_lapse, 1_000_000),
    ("cost 万元", lambda month: month.cost_fen, FEN_PER_WAN_YUAN),
    ("yuan a tonne", lambda month: month.fen_per_tonne, 100),
)


def tables(found: Comparison) -> list[Table]:
    """Month by month: as it is, and below it with the change; points, then money."""
    said = f"{len(found.changed)} months as they are, and below with {_said(found.change)}"
    return [_table(found, POINTS, said), _table(found, MONEY, "What it costs")]


def _table(found: Comparison, columns: Columns, title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("month", no_wrap=True)
    for name, _, _ in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    for before, after in zip(found.as_it_is, found.changed, strict=True):
        shown.add_row(before.month, *_row(before, columns), style="dim")
        shown.add_row("changed", *_row(after, columns), end_section=True)
    return shown


def _row(month: Month, columns: Columns) -> list[str]:
    return [_number(value(month), unit) for _, value, unit in columns]


def summary(found: Comparison) -> str:
    """The year in one sentence."""
    cost = [sum(month.cost_fen for month in side) for side in (found.as_it_is, found.changed)]
    owed = [side[-1].liability_fen for side in (found.as_it_is, found.changed)]
    saved = [sum(month.saved_kg for month in side) for side in (found.as_it_is, found.changed)]
    return (
        f"Cost {_yuan(cost[1])} instead of {_yuan(cost[0])}; liability at the end "
        f"{_yuan(owed[1])} instead of {_yuan(owed[0])}; "
        f"saved {saved[1] // 1_000:,} t instead of {saved[0] // 1_000:,} t."
    )


def plots(found: Comparison, folder: Path) -> list[Path]:
    """Write the plots; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Callable[[Figure], None]] = {
        "liability.png": lambda figure: _lines(
            figure,
            found,
            "未兑付积分的负债  Liability of outstanding points",
            "万元  10,000 yuan",
            lambda month: month.liability_fen / FEN_PER_WAN_YUAN,
        ),
        "cost.png": lambda figure: _lines(
            figure,
            found,
            "每月兑换成本  Cost of what is redeemed",
            "万元  10,000 yuan",
            lambda month: month.cost_fen / FEN_PER_WAN_YUAN,
        ),
        "cost_per_tonne.png": lambda figure: _lines(
            figure,
            found,
            "每吨减排成本  Cost per tonne saved",
            "元/吨  yuan/t",
            lambda month: month.fen_per_tonne / 100,
        ),
        "points.png": lambda figure: _points(figure, found),
    }
    files = []
    for name, draw in drawn.items():
        file = folder / name
        file.write_bytes(drawing.png(draw))
        files.append(file)
    return files


def _lines(
    figure: Figure, found: Comparison, title: str, unit: str, value: Callable[[Month], float]
) -> None:
    axes = figure.add_subplot()
    sides = ((found.as_it_is, "维持现状  As it is"), (found.changed, _said_zh(found.change)))
    for colour, (side, label) in zip(COLOURS, sides, strict=False):
        axes.plot(
            [month.month for month in side],
            [value(month) for month in side],
            color=colour,
            marker="o",
            markersize=4,
            label=label,
        )
    axes.set_ylim(bottom=0)
    _dress(axes, title, unit)


def _points(figure: Figure, found: Comparison) -> None:
    """Where the points of the changed side go, month by month."""
    axes = figure.add_subplot()
    names = [month.month for month in found.changed]
    issued = [month.issued / 1e6 for month in found.changed]
    spent = [month.spent / 1e6 for month in found.changed]
    lapsed = [month.lapsed / 1e6 for month in found.changed]
    places = range(len(names))
    axes.bar([place - 0.2 for place in places], issued, 0.4, color=COLOURS[0], label="发放  Issued")
    axes.bar([place + 0.2 for place in places], spent, 0.4, color=COLOURS[2], label="兑换  Spent")
    axes.bar(
        [place + 0.2 for place in places],
        lapsed,
        0.4,
        bottom=spent,
        color=COLOURS[4],
        label="过期  Lapsed",
    )
    axes.set_xticks(list(places), names)
    _dress(axes, f"积分去向  Points: {_said_zh(found.change)}", "百万积分  million points")


def _dress(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_ylabel(unit)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelrotation=45)
    axes.legend(loc="best")


def _number(value: int, unit: int) -> str:
    """Whole units; a small town has places behind them."""
    shown = value / unit
    return f"{shown:,.0f}" if unit == 1 or shown >= 100 or not value else f"{shown:,.3f}"


def _yuan(fen: int) -> str:
    return f"{fen // 100:,} yuan"


def _said(change: Change) -> str:
    return f"rate x{change.rate:g}, prices x{change.price:g}, uptake x{change.uptake:g}"


def _said_zh(change: Change) -> str:
    return f"积分率×{change.rate:g} 价格×{change.price:g} 参与×{change.uptake:g}"
