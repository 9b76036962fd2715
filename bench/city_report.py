"""Tables and plots of `docs/scale.md` from what `bench/city.py` wrote.

    python -m bench.city_report [--from docs/scale] [--page docs/scale.md]

Plots go beside the figures. The tables stand in the page between two marks, and are written anew.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accounting import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEGIN, END = "<!-- tables: python -m bench.city_report -->", "<!-- end of tables -->"
PLAN, PLAN_END = "<!-- plan: python -m bench.city_report -->", "<!-- end of plan -->"
City = dict[str, Any]
Value = Callable[[City], float]
# What there is once an activity, once a month of a resident, and once a resident.
OF_ACTIVITIES = ("activities", "entries", "claims")
OF_MONTHS = ("summary_months", "grades")
OF_RESIDENTS = (
    "residents", "links", "summary_cursors", "milestones", "notifications", "grade_changes",
)  # fmt: skip
# Of a resident, what every row that comes in reads.
HOT = ("residents", "links")
EVERY = (*OF_ACTIVITIES, *OF_MONTHS, *OF_RESIDENTS)
# Written for every activity, so in the log of operations: its month is replaced as a whole.
LOGGED = ("activities", "entries", "claims", "summary_months", "summary_cursors")
# Kinds of reads in the order of the page.
KINDS = ("me", "account", "statement", "activities", "summary", "grade", "bank query")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--from", dest="folder", type=Path, default=Path("docs/scale"))
    parser.add_argument("--page", type=Path, default=Path("docs/scale.md"))
    wanted = parser.parse_args()
    cities = [json.loads(one.read_text("utf-8")) for one in wanted.folder.glob("*.json")]
    cities.sort(key=lambda city: city["residents"])
    for name, draw in PLOTS.items():
        plot = drawing.png(lambda figure, draw=draw: draw(figure, cities), height_in=4.2)
        (wanted.folder / f"{name}.png").write_bytes(plot)
    page = wanted.page.read_text("utf-8")
    page = between(page, BEGIN, END, "\n\n".join(make(cities) for make in TABLES))
    page = between(page, PLAN, PLAN_END, plan(cities))
    wanted.page.write_text(page, "utf-8")


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with a text between two marks."""
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


# --- figures ------------------------------------------------------------------------------------


def cpu_a_row(part: str) -> Value:
    return lambda city: city["import"]["us_a_row"][part]


def disk_of(city: City, names: Sequence[str]) -> int:
    """Bytes on disk of some collections with their indexes, as they were seeded."""
    return sum(
        city["disk"][name]["storage"] + city["disk"][name]["indexes"]
        for name in names
        if name in city["disk"]
    )


def bytes_a_resident(city: City) -> float:
    return disk_of(city, EVERY) / city["residents"]


def bytes_an_activity(city: City) -> float:
    return disk_of(city, OF_ACTIVITIES) / city["seeding"]["reports"]


def ratio_of_cpu(city: City) -> float:
    """Of the workers and mongod, a resident, to that of mongod for a document of the bare one."""
    graded = city["regrade"]["cpu_us_a_resident"]
    found: float = (graded["worker"] + graded["mongod"]) / city["bare"]["cpu_us_a_document"]
    return found


def slope(cities: Sequence[City], value: Value) -> str:
    """The exponent b of a cost that grows as N^b, by least squares over the logarithms."""
    if len(cities) < 2:
        return ""
    points = [(math.log(city["residents"]), math.log(value(city))) for city in cities]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return f"{over / sum((x - mean_x) ** 2 for x, _ in points):+.2f}"


COSTS: tuple[tuple[str, Value, str], ...] = (
    ("file, rows a second", lambda city: city["import"]["rows_a_second"], ",.0f"),
    ("file, µs of worker a row", cpu_a_row("worker"), ",.0f"),
    ("file, µs of mongod a row", cpu_a_row("mongod"), ",.0f"),
    ("file, µs of follower a row", cpu_a_row("follower"), ",.0f"),
    ("book, entries posted a second", lambda city: city["posting"]["entries_a_second"], ",.0f"),
    ("book, µs of mongod an entry", lambda city: city["posting"]["mongod_us_an_entry"], ",.0f"),
    ("grading, residents", lambda city: city["regrade"]["residents"], ",.0f"),
    ("grading, seconds", lambda city: city["regrade"]["seconds"], ",.1f"),
    ("grading, µs a resident", lambda city: city["regrade"]["us_a_resident"], ",.0f"),
    (
        "grading, µs of worker a resident",
        lambda city: city["regrade"]["cpu_us_a_resident"]["worker"],
        ",.0f",
    ),
    (
        "grading, µs of mongod a resident",
        lambda city: city["regrade"]["cpu_us_a_resident"]["mongod"],
        ",.0f",
    ),
    ("bare aggregation, µs a document", lambda city: city["bare"]["us_a_document"], ",.0f"),
    (
        "grading to bare, ratio",
        lambda city: city["regrade"]["us_a_resident"] / city["bare"]["us_a_document"],
        ".2f",
    ),
    ("grading to bare, ratio of CPU", ratio_of_cpu, ".2f"),
    ("disk, bytes a resident", bytes_a_resident, ",.0f"),
    ("disk, bytes an activity", bytes_an_activity, ",.0f"),
    ("seeding, s", lambda city: city["seeding"]["seconds"], ",.0f"),
)
# No cost, so without a slope.
SIZES = ("grading, residents", "grading, seconds", "seeding, s")


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def costs(cities: Sequence[City]) -> str:
    head = ["residents", *(f"{city['residents']:,}" for city in cities), "slope"]
    body = [
        [
            name,
            *(format(value(city), form) for city in cities),
            "" if name in SIZES else slope(cities, value),
        ]
        for name, value, form in COSTS
    ]
    return rows(head, body)


def waits(cities: Sequence[City]) -> str:
    head = ["ms, p50 / p99", *(f"{city['residents']:,}" for city in cities)]
    body = []
    for name in ("idle", "mixed"):
        of_all = [city[name]["reads"] for city in cities]
        body.append([f"all reads, {name}", *(_wait(one) for one in of_all)])
    body.append(
        [
            "p99, mixed to idle",
            *(f"{_p99(city, 'mixed') / _p99(city, 'idle'):.1f}" for city in cities),
        ]
    )
    for kind in KINDS:
        body += [
            [f"{kind}, {name}", *(_wait(city[name]["kinds"][kind]) for city in cities)]
            for name in ("idle", "mixed")
        ]
    posts = [city["mixed"]["kinds"].get("post") for city in cities]
    body.append(["report of an activity, mixed", *(_wait(one) if one else "" for one in posts)])
    body.append(
        ["reads in the mixed run", *(f"{city['mixed']['reads']['count']:,}" for city in cities)]
    )
    body.append(
        [
            "rows a second meanwhile",
            *(f"{city['mixed']['import']['rows_a_second']:,}" for city in cities),
        ]
    )
    return rows(head, body)


def _wait(told: dict[str, float]) -> str:
    return f"{told['p50']:.1f} / {told['p99']:.1f}"


def _p99(city: City, when: str) -> float:
    found: float = city[when]["reads"]["p99"]
    return found


def disk(cities: Sequence[City]) -> str:
    largest = cities[-1]
    head = [
        "collection",
        "documents",
        "BSON, bytes each",
        "data on disk, bytes each",
        "indexes, bytes each",
    ]
    body = []
    for name, one in sorted(largest["disk"].items(), key=lambda item: -item[1]["storage"]):
        if name in EVERY:
            each = (one[part] / one["count"] for part in ("bson", "storage", "indexes"))
            body.append([name, f"{one['count']:,}", *(f"{size:,.0f}" for size in each)])
    return rows(head, body)


def memory(cities: Sequence[City]) -> str:
    head = ["most MiB of a process", *(f"{city['residents']:,}" for city in cities)]
    parts = list(cities[0]["peak_mib"])
    return rows(
        head, [[part, *(f"{city['peak_mib'][part]:,}" for city in cities)] for part in parts]
    )


TABLES = (costs, waits, disk, memory)


# --- the paper plan -----------------------------------------------------------------------------

SIZES_PLANNED = (2_334_000, 10_000_000, 100_000_000)
ACTIVITIES_A_DAY, NIGHT_S = 5, 6 * 3_600
# Of all residents, who looks in the busiest hour, and how many reads that is.
LOOKING, READS_EACH = 0.1, 6
# A member of a shard: half of its cores may be busy, 80 % of its disk full.
MEMBER_CORES, MEMBER_DISK_TB, MEMBER_MEMORY_GB = 16, 4, 128
BUSY, FULL, CACHED = 0.5, 0.8, 0.5
TB, GB = 1e12, 1e9


def plan(cities: Sequence[City]) -> str:
    """What larger cities take by the costs of the largest one that was measured."""
    city = cities[-1]
    row, read = city["import"]["us_a_row"], city["idle"]["us_a_read"]
    graded = city["regrade"]["cpu_us_a_resident"]
    grading_us = graded["worker"] + graded["mongod"]
    hot = hot_bytes_a_resident(city)
    logged = sum(
        one["bson"]
        / one["count"]
        * (one["count"] / city["seeding"]["reports"] if name == "claims" else 1)
        for name, one in city["disk"].items()
        if name in LOGGED
    )

    def column(residents: int) -> list[float]:
        a_day = residents * ACTIVITIES_A_DAY
        rows_s, reads_s = a_day / NIGHT_S, residents * LOOKING * READS_EACH / 3_600
        mongod_cores = (rows_s * row["mongod"]) / 1e6
        year_tb = (
            a_day * 365 * bytes_an_activity(city) + residents * bytes_a_year_besides(city)
        ) / TB
        hot_gb = residents * hot / GB
        by_cores = mongod_cores / (MEMBER_CORES * BUSY)
        by_disk = year_tb / (MEMBER_DISK_TB * FULL)
        by_memory = hot_gb / (MEMBER_MEMORY_GB * CACHED)
        return [
            residents,
            a_day / 1e6,
            rows_s,
            rows_s * row["worker"] / 1e6,
            mongod_cores,
            rows_s * row["follower"] / 1e6,
            residents * grading_us / 1e6 / NIGHT_S,
            reads_s,
            reads_s * read["api"] / 1e6,
            reads_s * read["mongod"] / 1e6,
            year_tb,
            a_day * logged / GB,
            hot_gb,
            a_day * city["import"]["bytes"] / city["import"]["rows"] / GB,
            by_cores,
            by_disk,
            by_memory,
        ]

    columns = [column(residents) for residents in SIZES_PLANNED]
    body = [
        [name, *(_rounded(one[place]) for one in columns)] for place, name in enumerate(PLANNED)
    ]
    return rows(["residents", *(f"{size:,}" for size in SIZES_PLANNED)], body[1:])


PLANNED = (
    "residents",
    "activities a day, millions",
    "rows a second, in six hours",
    "cores of workers for that",
    "cores of mongod for that, on primaries",
    "cores of followers for that",
    "cores for grading everybody in six hours",
    "reads a second in the busiest hour",
    "cores of the API for that",
    "cores of mongod for that",
    "disk a year of one copy, TB",
    "log of operations a day, GB",
    "working set, GB",
    "partners' files a day, gzip, GB",
    "shards by cores",
    "shards by a year of disk",
    "shards by memory",
)


def bytes_a_year_besides(city: City) -> float:
    """Disk of a resident whatever they do, with twelve months and as many gradings."""
    a_month = sum(disk_of(city, [name]) / city["disk"][name]["count"] for name in OF_MONTHS)
    return disk_of(city, OF_RESIDENTS) / city["residents"] + 12 * a_month


def hot_bytes_a_resident(city: City) -> float:
    """What a night touches of each: account and links with their indexes, last entry, last month.

    Documents as they lie in memory, which is not compressed.
    """
    kept = (
        sum(city["disk"][name]["bson"] + city["disk"][name]["indexes"] for name in HOT)
        / city["residents"]
    )
    newest = sum(
        (one["bson"] + one["indexes"]) / one["count"]
        for one in (city["disk"][name] for name in ("entries", "summary_months", "summary_cursors"))
    )
    return kept + newest * city["seeding"]["active"] / city["residents"]


def _rounded(value: float) -> str:
    """Two digits that count are more than a plan knows; below ten one behind the point."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


# --- plots --------------------------------------------------------------------------------------


def _by_size(axes: "Axes", cities: Sequence[City], title: str, unit: str) -> None:
    sizes = [city["residents"] for city in cities]
    axes.set_xscale("log")
    axes.set_xticks(sizes, [_short(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("居民数 residents")
    axes.set_ylabel(unit)
    axes.set_title(title)


def _short(size: int) -> str:
    return f"{size / 1e6:g} M" if size >= 1_000_000 else f"{size / 1e3:g} k"


def _lines(axes: "Axes", cities: Sequence[City], named: dict[str, Value]) -> None:
    sizes = [city["residents"] for city in cities]
    for (name, value), colour in zip(named.items(), drawing.COLOURS, strict=False):
        axes.plot(sizes, [value(city) for city in cities], "o-", label=name, color=colour)
    # Room for the legend above what is drawn.
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(loc="upper left")


def draw_costs(figure: "Figure", cities: Sequence[City]) -> None:
    left, right = figure.subplots(1, 2)
    named: dict[str, Value] = {
        "任务进程 worker": cpu_a_row("worker"),
        "数据库 mongod": cpu_a_row("mongod"),
        "汇总进程 follower": cpu_a_row("follower"),
    }
    _lines(left, cities, named)
    _by_size(left, cities, "导入一行 One row of a file", "CPU µs")
    graded: dict[str, Value] = {
        "评级 grading": lambda city: city["regrade"]["us_a_resident"],
        "评级的处理器 grading, CPU": lambda city: sum(
            city["regrade"]["cpu_us_a_resident"].values()
        ),
        "裸聚合 bare aggregation": lambda city: city["bare"]["us_a_document"],
    }
    _lines(right, cities, graded)
    _by_size(right, cities, "评级一人 Grading one resident", "µs")


def draw_disk(figure: "Figure", cities: Sequence[City]) -> None:
    axes = figure.subplots()
    names = [name for name in EVERY if name in cities[-1]["disk"]]
    places = range(len(cities))
    bottom = [0.0] * len(cities)
    for number, name in enumerate(names):
        each = [disk_of(city, [name]) / city["residents"] for city in cities]
        colour = drawing.COLOURS[number % len(drawing.COLOURS)]
        hatch = "//" if number >= len(drawing.COLOURS) else None
        axes.bar(
            places, each, bottom=bottom, label=name, color=colour, hatch=hatch, edgecolor="white"
        )
        bottom = [low + one for low, one in zip(bottom, each, strict=True)]
    axes.set_xticks(places, [_short(city["residents"]) for city in cities])
    axes.set_xlabel("居民数 residents")
    axes.set_ylabel("字节 bytes")
    axes.set_title("每位居民占用磁盘 Disk of one resident")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_waits(figure: "Figure", cities: Sequence[City]) -> None:
    axes = figure.subplots()
    named: dict[str, Value] = {
        f"{said} {name}": lambda city, key=key, name=name: city[key]["reads"][name]  # type: ignore[misc]
        for key, said in (("idle", "空闲 idle"), ("mixed", "导入时 while files come in"))
        for name in ("p50", "p99")
    }
    _lines(axes, cities, named)
    axes.set_yscale("log")
    axes.set_ylim(1, 10 * max(_p99(city, "mixed") for city in cities))
    _by_size(axes, cities, "读请求等待 Waits of reads", "ms")
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000]
    most = axes.get_ylim()[1]
    axes.set_yticks(*zip(*((tick, f"{tick:,}") for tick in ticks if tick <= most), strict=True))


def draw_memory(figure: "Figure", cities: Sequence[City]) -> None:
    axes = figure.subplots()
    named: dict[str, Value] = {
        part: lambda city, part=part: city["peak_mib"][part]  # type: ignore[misc]
        for part in cities[0]["peak_mib"]
    }
    _lines(axes, cities, named)
    _by_size(axes, cities, "进程内存峰值 Most memory of a process", "MiB")


PLOTS: dict[str, Callable[["Figure", Sequence[City]], None]] = {
    "costs": draw_costs,
    "disk": draw_disk,
    "waits": draw_waits,
    "memory": draw_memory,
}


if __name__ == "__main__":
    main()
