"""What an alert says to people, in Chinese and English. The numbers are in its facts."""

from collections.abc import Mapping

from accounting.enterprise.alert_rules import Rule
from accounting.errors import Language

TEXTS: Mapping[Rule, Mapping[Language, str]] = {
    Rule.LIMIT: {
        "zh": "功率超过该节点的限值。",
        "en": "The power is above the limit of the node.",
    },
    Rule.DAY_TOTAL: {
        "zh": "日用量明显高于同类日。",
        "en": "The day took clearly more than like days before.",
    },
    Rule.EWMA: {
        "zh": "近期用量偏离基准（EWMA 控制图）。",
        "en": "The use of the last days has moved away from its baseline (EWMA chart).",
    },
    Rule.CUSUM: {
        "zh": "用量缓慢漂移（CUSUM 控制图）。",
        "en": "The use drifts slowly away from its baseline (CUSUM chart).",
    },
    Rule.STANDBY: {
        "zh": "非生产时段用量偏高。",
        "en": "More than usual is used outside the shifts.",
    },
    Rule.DEMAND: {
        "zh": "需量接近或超过合同需量。",
        "en": "The demand is close to or above what was contracted.",
    },
    Rule.BUDGET: {
        "zh": "预算进度偏快。",
        "en": "The budget is used up faster than planned.",
    },
    Rule.FORECAST: {
        "zh": "预测全年将超预算。",
        "en": "The year is going to take more than its budget.",
    },
    Rule.SILENT: {
        "zh": "表计没有数据。",
        "en": "Nothing is heard from the meter.",
    },
    Rule.QUALITY: {
        "zh": "本月数据不完整或估算过多。",
        "en": "The month's data have gaps or too many estimates.",
    },
    Rule.LABEL: {
        "zh": "滚动十二个月的碳效标识低于上一正式标识。",
        "en": "The label of the last twelve months is worse than the last final one.",
    },
    Rule.SURPLUS: {
        "zh": "季度末节约超过计划一成，余量可交易。",
        "en": "At the quarter's end over a tenth of the plan was saved and may be traded.",
    },
}
