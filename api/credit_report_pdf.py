"""The carbon credit report of a resident as a PDF with plots, in Chinese or English."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accounting import drawing
from accounting.errors import Language
from accounting.quantities import MG_PER_KG
from api.documents import Document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS: dict[str, tuple[str, str]] = {
    "title": ("个人碳征信报告", "Personal carbon credit report"),
    "reference": ("编号", "Reference"),
    "purpose": ("用途", "Purpose"),
    "grade": ("碳账户等级", "Carbon grade"),
    "period": ("评价期", "Period"),
    "graded": ("评定日期", "Graded on"),
    "valid": ("有效期至", "Valid until"),
    "reduction": ("减排总量", "Reduction"),
    "counted": ("计入评级", "Counted for the grade"),
    "margin": ("高于本级下限", "Above the floor of this grade"),
    "coverage": ("活跃月数", "Active months"),
    "share": ("A、B 类证据占比", "Share of class A and B evidence"),
    "policy": ("评级规则", "Grade policy"),
    "months": ("每月减排量（千克 CO2e）", "Reduction by month (kg CO2e)"),
    "dimensions": ("按维度计入量（千克 CO2e）", "Counted by dimension (kg CO2e)"),
    "history": ("历次评级", "Past gradings"),
    "green_travel": ("绿色出行", "Green travel"),
    "green_payment": ("绿色支付", "Green payment"),
    "green_life": ("绿色生活", "Green life"),
    "what": (
        "只含 A、B 类证据、扣除撤销后的减排量，不含健康数据。单一行为至多计入总量的 40%。"
        "经居民授权提供，仅限所列用途。可用文末的签名离线核验。",
        "Reductions of class A and B evidence, net of reversals, without health data; one "
        "behaviour counts at most 40 % of the total. Given under the resident's consent for the "
        "stated purpose only. The signature at the end verifies offline.",
    ),
    "signature": ("签名（JWS）", "Signature (JWS)"),
}
GRADES = {
    "deep": ("深绿", "Deep green"),
    "mid": ("中绿", "Mid green"),
    "light": ("浅绿", "Light green"),
    "unrated": ("未评级", "Not rated"),
}


def credit_report_pdf(answer: Mapping[str, Any], to: Language) -> bytes:
    """The report of `GET /v1/bank/reports/{reference}` in one language."""
    said = {name: texts[to == "en"] for name, texts in WORDS.items()}
    period = f"{answer['period']['from_month']} – {answer['period']['to_month']}"
    document = Document(said["title"], period, footer=answer["reference"])
    facts = [
        (said["reference"], answer["reference"]),
        (said["purpose"], answer["purpose"]),
        (said["grade"], answer["label"]),
        (said["period"], period),
        (said["graded"], answer["graded_on"].isoformat()),
        (said["valid"], answer["valid_until"].isoformat()),
        (said["reduction"], _kg(answer["reduction_kg"])),
        (said["counted"], _kg(answer["counted_kg"])),
    ]
    if answer.get("margin_below_kg") is not None:
        facts.append((said["margin"], _kg(answer["margin_below_kg"])))
    if coverage := answer.get("coverage"):
        facts += [
            (said["coverage"], f"{coverage['active_months']} / {coverage['months']}"),
            (said["share"], f"{coverage['share_ab_percent']} %"),
        ]
    document.facts([*facts, (said["policy"], answer["policy_version"])])
    document.text(said["what"])
    document.heading(said["months"])
    document.figure(lambda figure: _by_month(figure, answer["by_month"]))
    document.heading(said["dimensions"])
    bars = [(said[one["dimension"]], one["counted_kg"]) for one in answer["by_dimension"]]
    document.figure(lambda figure: _by_dimension(figure, bars), height_in=1.8)
    document.heading(said["history"])
    document.table(
        [said["graded"], said["grade"]],
        [
            [one["graded_on"].isoformat(), GRADES[one["grade"]][to == "en"]]
            for one in answer["history"]
        ],
    )
    document.heading(said["signature"])
    document.small(answer["jws"])
    return document.pdf()


def _by_month(figure: "Figure", months: list[dict[str, Any]]) -> None:
    axes = figure.subplots()
    places = range(len(months))
    kg = [one["reduction_kg"] / MG_PER_KG for one in months]
    axes.bar(places, kg, color=drawing.COLOURS[2])
    axes.set_xticks(places, [one["month"] for one in months], rotation=45, ha="right")
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")


def _by_dimension(figure: "Figure", bars: list[tuple[str, int]]) -> None:
    axes = figure.subplots()
    names, kg = [name for name, _ in bars], [mg / MG_PER_KG for _, mg in bars]
    axes.barh(names, kg, color=drawing.COLOURS[0])
    axes.bar_label(axes.containers[0], fmt="%.1f", padding=3)  # type: ignore[arg-type]
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _kg(mg: int) -> str:
    return f"{mg / MG_PER_KG:,.3f} kg CO2e"
