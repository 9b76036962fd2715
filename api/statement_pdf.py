"""A merchant's statement as a PDF: what is paid, who pays it, and how the period went."""

from typing import TYPE_CHECKING, Any

from accounting import drawing
from accounting.errors import Language
from api.documents import Document, yuan
from rewards import merchants
from rewards.settlement import Statement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS_MAX = 40
# Whoever reads one language only reads one column of these.
WORDS: dict[str, tuple[str, str]] = {
    "title": ("商户结算单", "Merchant statement"),
    "merchant": ("商户", "Merchant"),
    "period": ("结算期", "Period"),
    "closed": ("关账时间", "Closed at"),
    "number": ("编号", "Number"),
    "vouchers": ("核销张数", "Vouchers used"),
    "refunds": ("退回张数", "Refunds"),
    "face": ("面额合计", "Face value"),
    "fee": ("手续费", "Fee"),
    "brought": ("上期结转", "Brought forward"),
    "payable": ("应付商户", "Payable to the merchant"),
    "carried": ("结转下期", "Carried forward"),
    "who pays": ("由谁支付", "Who pays"),
    "funder": ("出资方", "Funder"),
    "net": ("净额", "Net"),
    "points": ("积分", "Points"),
    "points used": ("用于兑换的积分", "Points the vouchers were bought with"),
    "value": ("价值", "Value"),
    "price": ("每千积分", "Per 1,000 points"),
    "transfers": ("积分出资方补偿奖品出资方", "Owed by funders of points to funders of rewards"),
    "from": ("支付方", "From"),
    "to": ("收款方", "To"),
    "by day": ("每日核销面额（元）", "Face value by day (yuan)"),
    "by reward": ("按奖品", "By reward"),
    "by store": ("按门店", "By store"),
    "reward": ("奖品", "Reward"),
    "store": ("门店", "Store"),
    "notes": ("贷项通知", "Credit notes"),
    "voucher": ("券", "Voucher"),
    "reason": ("说明", "Reason"),
    "refund": ("已结算核销的退回", "Refund of a scan settled before"),
    "more": ("其余 {left} 行见 CSV 文件。", "The other {left} rows are in the CSV file."),
}


def statement_pdf(statement: Statement, to: Language) -> bytes:
    """The statement in one language."""
    said, content = _words(to), statement.content
    name = content["merchant_name"][to]
    document = Document(
        said["title"], f"{name} · {content['from']} – {content['to']}", footer=statement.digest
    )
    document.facts(
        [
            (said["number"], statement.id),
            (said["merchant"], f"{name} ({statement.merchant_id})"),
            (said["period"], f"{content['from']} – {content['to']}"),
            (said["closed"], content["closed_at"]),
            (said["vouchers"], str(content["vouchers"])),
            (said["refunds"], str(content["refunds"])),
        ]
    )
    document.table(
        ["", "¥"],
        [
            [said["face"], yuan(content["face_value_fen"])],
            [
                f"{said['fee']} ({content['fee_basis_points'] / 100:.2f} %)",
                yuan(-content["fee_fen"]),
            ],
            [said["brought"], yuan(content["brought_forward_fen"])],
            [said["carried"], yuan(content["carried_forward_fen"])],
            [said["payable"], yuan(content["payable_fen"])],
        ],
        numbers=[1],
        widths=[0.7, 0.3],
        total=True,
    )
    _who_pays(document, said, content)
    if content["by_day"]:
        document.heading(said["by day"])
        document.figure(lambda figure: _by_day(figure, content["by_day"]))
    rewards = [[line["title"][to], yuan(line["face_value_fen"])] for line in content["by_reward"]]
    _section(document, said, "by reward", [said["reward"], "¥"], rewards)
    names = {store.store_id: store.name for store in merchants.get(statement.merchant_id).stores}
    stores = [
        [names.get(line["store_id"], line["store_id"]), yuan(line["face_value_fen"])]
        for line in content["by_store"]
    ]
    _section(document, said, "by store", [said["store"], "¥"], stores)
    notes = [
        [note["voucher_id"] or "–", note["reason"] or said["refund"], yuan(note["face_value_fen"])]
        for note in content["credit_notes"]
    ]
    _section(document, said, "notes", [said["voucher"], said["reason"], "¥"], notes)
    return document.pdf()


def _who_pays(document: Document, said: dict[str, str], content: dict[str, Any]) -> None:
    lines = [
        [line["funder"], *(yuan(line[name]) for name in ("face_value_fen", "fee_fen", "net_fen"))]
        for line in content["lines"]
    ]
    header = [said["funder"], said["face"], said["fee"], said["net"]]
    _section(document, said, "who pays", header, lines)
    points = [
        [
            line["funder"],
            f"{line['points']:,}",
            yuan(line["fen_per_1000_points"]),
            yuan(line["value_fen"]),
        ]
        for line in content["points"]
    ]
    header = [said["funder"], said["points"], said["price"], said["value"]]
    _section(document, said, "points used", header, points)
    owed = [[line["from"], line["to"], yuan(line["value_fen"])] for line in content["transfers"]]
    _section(document, said, "transfers", [said["from"], said["to"], said["value"]], owed)


def _section(
    document: Document, said: dict[str, str], name: str, header: list[str], rows: list[list[str]]
) -> None:
    """A table under its heading; none when there is nothing to show, and no endless one."""
    if not rows:
        return
    document.heading(said[name])
    texts = 2 if name in ("notes", "transfers") else 1
    document.table(header, rows[:ROWS_MAX], numbers=range(texts, len(header)))
    if len(rows) > ROWS_MAX:
        document.text(said["more"].format(left=len(rows) - ROWS_MAX))


def _by_day(figure: "Figure", days: list[dict[str, Any]]) -> None:
    axes = figure.subplots()
    places = range(len(days))
    axes.bar(places, [day["face_value_fen"] / 100 for day in days], color=drawing.COLOURS[2])
    step = max(1, len(days) // 10)
    axes.set_xticks(places[::step], [day["day"][5:] for day in days[::step]])
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.grid(visible=False, axis="x")


def _words(to: Language) -> dict[str, str]:
    return {name: texts[to == "en"] for name, texts in WORDS.items()}
