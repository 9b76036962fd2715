"""The carbon credit report of a plant's year as a PDF with plots, in Chinese or English."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from accounting import clock, drawing, factors
from accounting.enterprise import label_rules
from accounting.enterprise.budget import Measure
from accounting.enterprise.plant_reports import Curve, PlantReport
from accounting.enterprise.slots import SLOTS
from accounting.errors import Language
from accounting.quantities import MG_PER_KG
from api.documents import Document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MG_PER_T = 1_000 * MG_PER_KG
W_PER_KW = 1_000
# The four colours of the label, and what is not rated.
LABEL_COLOURS = {
    "dark_green": "#0B6E4F",
    "light_green": "#7BC47F",
    "yellow": "#E0B000",
    "red": "#C0392B",
    "unrated": "#999999",
}
K_SHOWN_MAX = 3.0
CUTS = tuple(float(cut) for cut, _ in label_rules.CUTS)

WORDS: dict[str, tuple[str, str]] = {
    "title": ("企业碳征信报告", "Carbon credit report of a plant"),
    "report": ("报告编号", "Report"),
    "name": ("企业名称", "Plant"),
    "uscc": ("统一社会信用代码", "USCC"),
    "sector": ("行业", "Sector"),
    "period": ("报告期", "Period"),
    "label": ("碳账户标签", "Carbon label"),
    "total": ("温室气体排放量", "Greenhouse gas emissions"),
    "scopes": ("范围一 / 范围二", "Scope 1 / scope 2"),
    "tce": ("综合能耗（当量值）", "Energy, calorific"),
    "quality": ("实测占比 / 估算占比", "Measured / estimated"),
    "factors": ("排放因子集", "Factor sets"),
    "revision": ("数据版本", "Revision of the data"),
    "made": ("出具时间", "Issued"),
    "provisional": ("暂定", "provisional"),
    "carriers": ("分能源品种排放（吨 CO2e）", "Emissions by carrier (t CO2e)"),
    "months": ("每月排放（吨 CO2e）", "Emissions by month (t CO2e)"),
    "load": ("典型日负荷曲线（千瓦）", "Load over a typical day (kW)"),
    "workdays": ("工作日", "Monday to Friday"),
    "weekends": ("周末", "Weekend"),
    "hour": ("时", "hour"),
    "peak": ("最高 {kw} 千瓦，{at}；取 {first} 至 {last} 的数据。",
             "Highest {kw} kW at {at}; from {first} to {last}."),
    "no_load": ("报告期最后四周没有完整的负荷数据。", "The last four weeks have no complete load."),
    "against": ("排放强度与行业基准之比（K 值）", "Intensities against the benchmark (K)"),
    "indicator": ("指标", "Indicator"),
    "intensity": ("强度（克/单位）", "Intensity (g per unit)"),
    "benchmark": ("行业基准", "Benchmark"),
    "k": ("K 值", "K"),
    "rated": ("等级", "Label"),
    "product": ("单位产品", "Product"),
    "added_value": ("单位增加值", "Added value"),
    "tax": ("单位税收", "Tax"),
    "no_k": ("没有可与行业基准比较的指标。", "No indicator can be held against a benchmark."),
    "deductions": ("清洁能源抵减", "Deductions"),
    "generated": ("自发电量", "Own generation"),
    "kind": ("项目", "What"),
    "generation": ("自发自用与上网光伏", "Own generation"),
    "export": ("外供电", "Power given away"),
    "import": ("外购", "Bought"),
    "kwh": ("千瓦时", "kWh"),
    "co2e": ("吨 CO2e", "t CO2e"),
    "none": ("无", "none"),
    "budget": ("用能与碳预算", "Energy and carbon budget"),
    "measure": ("指标", "Measure"),
    "plan": ("年度预算", "Plan"),
    "used": ("已用", "Used"),
    "forecast": ("全年预测", "Forecast"),
    "surplus": ("预计结余", "Surplus"),
    "process": ("过程排放", "Process"),
    "green_power": ("绿电", "Green power"),
    "what": (
        "数据来自企业计量表计，缺失不作零处理；排放因子按数据日期取值，尚无当年因子时为暂定值。"
        "标签规则为可配置的替代规则，并非地方标准原文。",
        "From the plant's own meters; what is missing is never taken for zero. Factors are those "
        "of the data's date, provisional until the year has its own. The label follows a "
        "configurable stand-in rule, not the text of the local standard.",
    ),
    "carrier": ("能源品种", "Carrier"),
    "quantity": ("用量", "Quantity"),
    "scope": ("范围", "Scope"),
    "signed": (
        "同一编号的 JSON 报告含全部数据与签名（JWS），摘要相同即内容相同。",
        "The JSON report of the same number holds all data and the signature (JWS); one digest "
        "means the same content.",
    ),
}  # fmt: skip
MEASURES: Mapping[Measure, tuple[str, str]] = {
    Measure.ENERGY: ("电力（千瓦时）", "Electricity (kWh)"),
    Measure.COAL: ("综合能耗（吨标准煤，等价值）", "Energy (tce, equivalent)"),
    Measure.CARBON: ("碳排放（吨 CO2）", "Carbon (t CO2)"),
}
NOTHING = "–"


def plant_report_pdf(report: PlantReport, answer: Mapping[str, Any], to: Language) -> bytes:
    """The report of `GET /v1/plants/{id}/report` in one language."""
    said = {name: texts[to == "en"] for name, texts in WORDS.items()}
    period = f"{report.year}-01-01 – {report.last.isoformat()}"
    document = Document(
        said["title"], f"{report.plant.name} · {period}", footer=answer["report_id"]
    )
    document.facts(_facts(report, answer, said))
    document.text(said["what"])
    total = report.inventory.total
    bars = [
        (_carrier(name, said, to), one.co2e_mg) for name, one in sorted(total.by_carrier.items())
    ]
    if bars:
        document.heading(said["carriers"])
        document.figure(lambda figure: _by_carrier(figure, bars), height_in=0.7 + 0.5 * len(bars))
        document.table(
            [said[name] for name in ("carrier", "quantity", "scope", "co2e")],
            [
                [
                    _carrier(name, said, to),
                    f"{_number(one['quantity'])} {one['unit'] or ''}".strip(),
                    str(one["scope"]),
                    _tonnes(one["co2e_kg"]),
                ]
                for name, one in answer["by_carrier"].items()
            ],
            numbers=(1, 2, 3),
        )
        document.heading(said["months"])
        document.figure(lambda figure: _by_month(figure, report))
    _add_load(document, report.curve, said)
    _add_intensities(document, answer["label"]["indicators"], said, to)
    _add_deductions(document, report, said)
    _add_budget(document, answer["budget"], said, to)
    document.small(f"SHA-256 {answer['sha256']}")
    document.small(said["signed"])
    return document.pdf()


def _facts(
    report: PlantReport, answer: Mapping[str, Any], said: Mapping[str, str]
) -> list[tuple[str, str]]:
    total, label = report.inventory.total, answer["label"]
    provisional = f"（{said['provisional']}）" if answer["provisional"] else ""
    measured, estimated = (100 * answer[name] for name in ("completeness", "estimated_share"))
    made = report.made_at.astimezone(clock.CITY).isoformat(sep=" ", timespec="minutes")
    facts = [
        (said["report"], answer["report_id"]),
        (said["name"], report.plant.name),
        (said["uscc"], report.plant.uscc),
        (said["sector"], f"{answer['plant']['sector_name']} · {report.plant.sector}"),
        (said["label"], label["name"] + provisional),
    ]
    if label["text"]:
        facts.append(("", label["text"]))
    if total.known:
        scopes = f"{_tonnes(total.scope_mg(1))} / {_tonnes(total.scope_mg(2))} t CO2e"
        facts += [
            (said["total"], f"{_tonnes(total.co2e_mg)} t CO2e"),
            (said["scopes"], scopes),
            (said["tce"], f"{_tonnes(total.tce_mg)} tce"),
        ]
    return [
        *facts,
        (said["quality"], f"{measured:.2f} % / {estimated:.2f} %"),
        (said["factors"], answer["factor_set"] or NOTHING),
        (said["revision"], str(answer["revision"])),
        (said["made"], made),
    ]


def _add_load(document: Document, curve: Curve, said: Mapping[str, str]) -> None:
    document.heading(said["load"])
    if curve.peak is None:
        document.text(said["no_load"])
        return
    at, watts = curve.peak
    caption = said["peak"].format(
        kw=f"{watts / W_PER_KW:,.1f}",
        at=at.astimezone(clock.CITY).isoformat(sep=" ", timespec="minutes")[:16],
        first=curve.first,
        last=curve.last,
    )
    document.figure(lambda figure: _load(figure, curve, said), caption=caption)


def _add_intensities(
    document: Document,
    indicators: Sequence[Mapping[str, Any]],
    said: Mapping[str, str],
    to: Language,
) -> None:
    document.heading(said["against"])
    rated = [one for one in indicators if one["k"] is not None]
    if rated:
        document.figure(lambda figure: _intensities(figure, rated, said), height_in=2.4)
    else:
        document.text(said["no_k"])
    document.table(
        [said[name] for name in ("indicator", "intensity", "benchmark", "k", "rated")],
        [
            [
                said[one["name"]],
                *(_number(one[name]) for name in ("intensity", "benchmark", "k")),
                label_rules.NAMES[label_rules.Label(one["label"])][to],
            ]
            for one in indicators
        ],
        numbers=(1, 2, 3),
    )
    for one in indicators:
        document.small(f"{said[one['name']]}: {one['explanation']}")


def _add_deductions(document: Document, report: PlantReport, said: Mapping[str, str]) -> None:
    document.heading(said["deductions"])
    document.facts([(said["generated"], f"{report.generated_wh / 1_000:,.1f} {said['kwh']}")])
    rows = [
        [said[one.kind], f"{one.energy_wh / 1_000:,.1f}", _tonnes(one.co2e_mg)]
        for one in report.deductions
    ]
    document.table(
        [said["kind"], said["kwh"], said["co2e"]],
        rows or [[said["none"], NOTHING, NOTHING]],
        numbers=(1, 2),
    )


def _add_budget(
    document: Document, budget: Mapping[str, Any], said: Mapping[str, str], to: Language
) -> None:
    document.heading(said["budget"])
    columns = ("plan", "used", "forecast", "surplus")
    names = {Measure.ENERGY: "kwh", Measure.COAL: "tce", Measure.CARBON: "tco2"}
    document.table(
        [said["measure"], *(said[name] for name in columns)],
        [
            [texts[to == "en"], *(_number(budget[column][names[measure]]) for column in columns)]
            for measure, texts in MEASURES.items()
        ],
        numbers=(1, 2, 3, 4),
    )


def _by_carrier(figure: "Figure", bars: Sequence[tuple[str, int]]) -> None:
    axes = figure.subplots()
    axes.barh([name for name, _ in bars], [mg / MG_PER_T for _, mg in bars], color=_BLUE)
    axes.bar_label(axes.containers[0], fmt="{:,.2f}", padding=3)  # type: ignore[arg-type]
    axes.margins(x=0.14)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _by_month(figure: "Figure", report: PlantReport) -> None:
    axes = figure.subplots()
    months = [month for month, _ in report.inventory.series]
    # A month of which nothing is known has no bar.
    tonnes = [one.co2e_mg / MG_PER_T if one.known else 0 for _, one in report.inventory.series]
    places = range(len(months))
    axes.bar(places, tonnes, color=drawing.COLOURS[2])
    axes.set_xticks(places, months, rotation=45, ha="right")
    axes.grid(visible=False, axis="x")


def _load(figure: "Figure", curve: Curve, said: Mapping[str, str]) -> None:
    axes = figure.subplots()
    for name, watts, colour in (
        ("workdays", curve.workdays, _BLUE),
        ("weekends", curve.weekends, drawing.COLOURS[1]),
    ):
        kw = [float("nan") if one is None else one / W_PER_KW for one in watts]
        # A line breaks where nothing is known.
        axes.step(
            [slot / 4 for slot in range(SLOTS)], kw, where="post", color=colour, label=said[name]
        )
    axes.set_xlim(0, 24)
    axes.set_xticks(range(0, 25, 3))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(said["hour"])
    axes.legend()


def _intensities(
    figure: "Figure", rated: Sequence[Mapping[str, Any]], said: Mapping[str, str]
) -> None:
    axes = figure.subplots()
    # A bar far beyond the worst cut would hide the cuts: it ends there, its number tells.
    axes.barh(
        [said[one["name"]] for one in rated],
        [min(float(one["k"]), K_SHOWN_MAX) for one in rated],
        color=[LABEL_COLOURS[one["label"]] for one in rated],
    )
    axes.bar_label(
        axes.containers[0],  # type: ignore[arg-type]
        labels=[f"{one['k']:.2f}" for one in rated],
        padding=3,
    )
    for cut in CUTS:
        axes.axvline(cut, color="#555555", linestyle="--", linewidth=0.8)
    axes.set_xticks([0, *CUTS])
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.grid(visible=False)


def _carrier(name: str, said: Mapping[str, str], to: Language) -> str:
    if name in said:
        return said[name]
    return factors.shipped().carriers[name][to]


def _tonnes(mg: int) -> str:
    return f"{Decimal(mg) / MG_PER_T:,.3f}"


def _number(value: Any) -> str:
    return NOTHING if value is None else f"{Decimal(value):,.3f}".rstrip("0").rstrip(".")


_BLUE = drawing.COLOURS[0]
