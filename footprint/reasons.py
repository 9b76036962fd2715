"""Why an activity was not, or not fully, credited: stable codes with a text in zh and en.

The table is printed in docs/methodology.md; a test compares the two.
"""

from collections.abc import Mapping
from typing import Any, Final

from accounting.errors import Language

REASONS: Final[dict[str, dict[Language, str]]] = {
    "in_the_future": {
        "en": "It lies more than five minutes in the future; check the clock of the device.",
        "zh": "发生时间超前当前时间五分钟以上，请检查设备时钟。",
    },
    "too_old": {
        "en": "It arrived too late: 30 days from the app, 180 days from a partner.",
        "zh": "上报过晚：App 上报限 30 天内，合作方上报限 180 天内。",
    },
    "behaviour_disabled": {
        "en": "This behaviour is listed but not credited at present.",
        "zh": "该行为目前仅列示，暂不计入减排。",
    },
    "evidence_not_accepted": {
        "en": "Recorded for your footprint; this behaviour is credited only with better evidence.",
        "zh": "已记入足迹；该行为需更可靠的证据（如合作方数据）才能获得减排量。",
    },
    "only_from_bills": {
        "en": "Recorded; household savings are credited only from bills the utility sends.",
        "zh": "已记录；家庭节能仅依据公用事业公司账单计入。",
    },
    "implausible_quantity": {
        "en": "The quantity is outside what one record of this behaviour can be.",
        "zh": "数量超出该行为单条记录的合理范围。",
    },
    "implausible_speed": {
        "en": "Distance and time do not fit this way of travelling.",
        "zh": "里程与用时不符合该出行方式。",
    },
    "implausible_duration": {
        "en": "It lasted longer than a day.",
        "zh": "持续时间超过一天，不合理。",
    },
    "quantity_not_whole": {
        "en": "This is counted in whole pieces.",
        "zh": "该行为按整数计量。",
    },
    "quantity_not_one": {
        "en": "A record with its own number (invoice, order, slip) counts exactly one.",
        "zh": "带有单号（发票、订单、称重单等）的记录数量必须为 1。",
    },
    "amount_too_small": {
        "en": "Payments below 1 yuan are not credited.",
        "zh": "金额低于 1 元的支付不计入。",
    },
    "already_credited": {
        "en": "The same invoice, order, slip, meter month, card or vehicle day was credited.",
        "zh": "同一发票、订单、称重单、户号月份、卡片或车辆日已计入过。",
    },
    "overlapping_trip": {
        "en": "It overlaps another trip of yours.",
        "zh": "与您的另一段出行时间重叠。",
    },
    "boarding_too_soon": {
        "en": "Less than ten minutes after another boarding of the same line.",
        "zh": "与同一线路上次乘车间隔不足十分钟。",
    },
    "same_trip": {
        "en": "Another source told of the same trip, with evidence at least as good; one counts.",
        "zh": "另一来源以同等或更可靠的证据上报了同一行程，仅计入一次。",
    },
    "lower_step_total": {
        "en": "A higher step total of the same day is credited already; the highest counts.",
        "zh": "当天已有更高的步数记录，以最高值为准。",
    },
    "step_limit": {
        "en": "Steps above 18,000 a day are not credited.",
        "zh": "每天超过 18000 步的部分不计入。",
    },
    "day_count_cap": {
        "en": "The number credited per day is reached.",
        "zh": "已达到每日计入次数上限。",
    },
    "same_merchant_cap": {
        "en": "Three payments a day are credited at one merchant.",
        "zh": "同一商户每天最多计入三次支付。",
    },
    "step_cadence": {
        "en": "More than 200 steps a minute; credited, and marked for a closer look.",
        "zh": "步频超过每分钟 200 步；已计入并标记待查。",
    },
    "manual_part_dropped": {
        "en": "The part entered by hand was left out; what the sensor counted is credited.",
        "zh": "手动录入的部分未计入，仅计传感器记录的部分。",
    },
    "month_count_cap": {
        "en": "The number credited per month is reached.",
        "zh": "已达到每月计入次数上限。",
    },
    "day_gram_cap": {
        "en": "The grams credited per day for this behaviour are reached.",
        "zh": "已达到该行为每日减排量上限。",
    },
    "overall_day_cap": {
        "en": "The grams credited per day over travel and payments are reached.",
        "zh": "已达到出行与支付类每日减排总量上限。",
    },
    "net_of_transit": {
        "en": "Less what transit and cycling earned the same day.",
        "zh": "已扣除当天公共交通与骑行所得减排量。",
    },
    "stop_day_covers": {
        "en": "The day you left the car at home covers this trip already.",
        "zh": "当天的停驶减排量已涵盖本次出行。",
    },
    "stale_factor": {
        "en": "The emission factor is past its review date.",
        "zh": "所用排放因子已过复核日期。",
    },
    "reversed": {
        "en": "It was taken back.",
        "zh": "已被撤销。",
    },
    "needs_history": {
        "en": "Bills of the twelve months before are needed first; it is judged when they arrive.",
        "zh": "需先有此前十二个月的账单；账单到齐后将重新核算。",
    },
    "no_saving": {
        "en": "The household used no less than in the same month of the years before.",
        "zh": "用量未低于往年同月。",
    },
    "saving_cap": {
        "en": "At most 30 % of what the same month used before counts as saved.",
        "zh": "节约量最多按往年同月用量的 30% 计入。",
    },
    "tier_3": {
        "en": "The household used more than 4,800 kWh in twelve months (third price step).",
        "zh": "近十二个月用电超过 4800 千瓦时（第三档），不计入。",
    },
    "vacancy_review": {
        "en": "Use below 30 % of the years before: the home may have been empty; under review.",
        "zh": "用量不足往年同月的 30%，住宅可能空置，待复核。",
    },
    "bill_estimated": {
        "en": "An estimated bill is recorded; the actual reading that corrects it is credited.",
        "zh": "估算账单仅作记录，待实际抄表账单更正后计入。",
    },
    "bill_history": {
        "en": "It ended more than 180 days before it arrived, so it serves as history only.",
        "zh": "账单周期结束已超过 180 天，仅作为历史用量。",
    },
    "bill_month_credited": {
        "en": "Another bill of this meter account was credited for the month.",
        "zh": "该户号当月已有账单计入。",
    },
    "bill_corrected": {
        "en": "The utility replaced this bill by a corrected one.",
        "zh": "该账单已由公用事业公司更正替换。",
    },
    "pv_home": {
        "en": "The home has solar panels, whose power would be taken for a saving.",
        "zh": "该住宅装有光伏，其发电会被误计为节约，故不计节电量。",
    },
    "pv_certified": {
        "en": "Power with a green certificate or another carbon credit is not counted again.",
        "zh": "已核发绿证或其他碳减排量的电量不重复计入。",
    },
    "no_own_use": {
        "en": "None of the solar power was used at home.",
        "zh": "光伏所发电量未在家中自用。",
    },
    "vacant_home": {
        "en": "A reviewer found that the home was probably empty, so it was not a saving.",
        "zh": "经复核，住宅很可能空置，不视为节约。",
    },
    "awaiting_review": {
        "en": "It waits for its photos and for an operator to review them.",
        "zh": "待上传照片并由运营人员审核。",
    },
    "photo_not_accepted": {
        "en": "A reviewer did not accept the photos as evidence.",
        "zh": "照片未通过审核，不能作为证据。",
    },
    "budget_slowed": {
        "en": "The grams count in full; the funder's budget runs low, so fewer points are given.",
        "zh": "减排量全额计入；积分出资方预算趋紧，发放的积分有所减少。",
    },
    "budget_spent": {
        "en": "The grams count in full; the funder's budget for points is used up.",
        "zh": "减排量全额计入；积分出资方预算已用完，暂不发放积分。",
    },
    "campaign_spent": {
        "en": "The budget for the bonus of a campaign is used up.",
        "zh": "活动奖励积分的预算已用完。",
    },
    "campaign_cap": {
        "en": "You have all the bonus points a campaign gives one resident, for the day or in all.",
        "zh": "已达到该活动给予每位居民的奖励积分上限（每日或总计）。",
    },
    "below_minimum": {
        "en": "It is worth fewer points than the smallest amount that is given.",
        "zh": "可得积分低于最低发放数量。",
    },
    "appeal_upheld": {
        "en": "Credited after your appeal, with the date it happened on.",
        "zh": "经申诉后计入，日期以实际发生时间为准。",
    },
}

# What would have been needed, for each reason that leaves nothing credited. In braces: facts.
NEEDED: Final[dict[str, dict[Language, str]]] = {
    "in_the_future": {
        "en": "A time not after {latest}.",
        "zh": "发生时间不晚于 {latest}。",
    },
    "too_old": {
        "en": "To arrive by {arrive_by}.",
        "zh": "应在 {arrive_by} 之前上报。",
    },
    "behaviour_disabled": {
        "en": "A version of the methodology that credits this behaviour.",
        "zh": "需有计入该行为的减排方法学版本。",
    },
    "evidence_not_accepted": {
        "en": "Evidence of class {evidence}; this was class {evidence_given}.",
        "zh": "需 {evidence} 类证据，本次为 {evidence_given} 类。",
    },
    "only_from_bills": {
        "en": "A bill of the utility for a meter account that is linked to you.",
        "zh": "需由公用事业公司发送您已关联户号的账单。",
    },
    "implausible_quantity": {
        "en": "A quantity of {quantity} {unit}.",
        "zh": "数量应为 {quantity} {unit}。",
    },
    "implausible_speed": {
        "en": "A speed of {kmh} km/h; this was {kmh_given} km/h.",
        "zh": "速度应为 {kmh} 公里/小时，本次为 {kmh_given} 公里/小时。",
    },
    "implausible_duration": {
        "en": "An end at most {hours} hours after the beginning.",
        "zh": "结束时间应在开始后 {hours} 小时之内。",
    },
    "quantity_not_whole": {
        "en": "A whole number.",
        "zh": "数量应为整数。",
    },
    "quantity_not_one": {
        "en": "One record for each number, with quantity 1.",
        "zh": "每个单号应单独上报，数量为 1。",
    },
    "amount_too_small": {
        "en": "A payment of at least {amount_fen_min} fen.",
        "zh": "支付金额应不低于 {amount_fen_min} 分。",
    },
    "already_credited": {
        "en": "An invoice, order, slip, meter month, card or vehicle day not credited before.",
        "zh": "发票、订单、称重单、户号月份、卡片或车辆日应未曾计入。",
    },
    "overlapping_trip": {
        "en": "A time at which no other trip of yours is credited.",
        "zh": "该时段应没有您的其他已计入出行。",
    },
    "boarding_too_soon": {
        "en": "At least {gap_minutes_min} minutes between two boardings of one line.",
        "zh": "同一线路两次乘车间隔应不少于 {gap_minutes_min} 分钟。",
    },
    "same_trip": {
        "en": "A trip that no other source told of, or better evidence of it than theirs.",
        "zh": "其他来源未曾上报的行程，或比其更可靠的证据。",
    },
    "lower_step_total": {
        "en": "A higher total than the one credited for the day.",
        "zh": "步数应高于当天已计入的步数。",
    },
    "day_count_cap": {
        "en": "A day on which fewer than {day_count} are credited.",
        "zh": "当天已计入次数应少于 {day_count} 次。",
    },
    "same_merchant_cap": {
        "en": "A merchant at which fewer than {same_count} payments of the day are credited.",
        "zh": "当天在该商户已计入的支付应少于 {same_count} 次。",
    },
    "month_count_cap": {
        "en": "A month in which fewer than {month_count} are credited.",
        "zh": "当月已计入次数应少于 {month_count} 次。",
    },
    "day_gram_cap": {
        "en": "A day on which less than {day_g} g of this behaviour are credited.",
        "zh": "该行为当天已计入减排量应低于 {day_g} 克。",
    },
    "overall_day_cap": {
        "en": "A day on which less than {overall_day_g} g over travel and payments are credited.",
        "zh": "出行与支付类当天已计入减排量合计应低于 {overall_day_g} 克。",
    },
    "net_of_transit": {
        "en": "A day on which transit and cycling earned less than the stop-driving day.",
        "zh": "当天公共交通与骑行所得减排量应低于停驶减排量。",
    },
    "stop_day_covers": {
        "en": "A day without a stop-driving day, or more transit than it covers.",
        "zh": "当天应未计入停驶，或公共交通与骑行减排量高于停驶减排量。",
    },
    "needs_history": {
        "en": "Actual bills that cover the twelve months before, and the same month before.",
        "zh": "需有覆盖此前十二个月及往年同月的实际抄表账单。",
    },
    "no_saving": {
        "en": "Less use than in the same months of the years before.",
        "zh": "用量应低于往年同期。",
    },
    "tier_3": {
        "en": "At most 4,800 kWh in twelve months.",
        "zh": "十二个月用电不超过 4800 千瓦时。",
    },
    "vacancy_review": {
        "en": "An operator's decision that somebody lived there.",
        "zh": "需运营人员复核认定有人居住。",
    },
    "pv_home": {
        "en": "A bill that says what the panels made; what was used at home is credited.",
        "zh": "需由账单载明光伏发电量；其中自发自用部分可计入。",
    },
    "pv_certified": {
        "en": "Power used at home that no certificate covers.",
        "zh": "需有未核发证书的自发自用电量。",
    },
    "no_own_use": {
        "en": "Solar power used at home, not sent into the grid.",
        "zh": "光伏所发电量应有部分在家中自用。",
    },
    "vacant_home": {
        "en": "Somebody living there.",
        "zh": "住宅应有人居住。",
    },
    "bill_estimated": {
        "en": "The bill of the actual reading, naming this one in `corrects`.",
        "zh": "需由实际抄表账单以 corrects 更正本账单。",
    },
    "bill_history": {
        "en": "To arrive by {arrive_by}.",
        "zh": "应在 {arrive_by} 之前送达。",
    },
    "bill_month_credited": {
        "en": "No other credited bill of this meter account in the month.",
        "zh": "该户号当月应没有其他已计入的账单。",
    },
    "bill_corrected": {
        "en": "Nothing: the bill that replaced it is what counts.",
        "zh": "无需处理，以更正后的账单为准。",
    },
    "awaiting_review": {
        "en": "Photos, and an operator who accepts them.",
        "zh": "需上传照片并由运营人员审核通过。",
    },
    "photo_not_accepted": {
        "en": "Photos of the odometer at the stop and at the next use, at least 24 hours apart.",
        "zh": "需提供停驶时与再次用车时的里程表照片，两次间隔至少 24 小时。",
    },
    "reversed": {
        "en": "Nothing: whoever reported or decided it took it back.",
        "zh": "无需处理，上报方或运营人员已撤销。",
    },
}


def text(code: str, language: Language) -> str:
    return REASONS[code][language]


def needed(code: str, language: Language, facts: Mapping[str, Any]) -> str | None:
    """What would have been needed; None for a reason that stands beside a credit."""
    return NEEDED[code][language].format(**facts) if code in NEEDED else None
