"""Why a reading is not taken, row by row (V1, V3, V4): what its code says in words."""

from accounting.errors import DomainError


class MalformedReading(DomainError):
    code = "malformed_reading"
    en = "The row is not a reading: a field is missing, unknown or of another form."
    zh = "该行不是有效的读数：字段缺失、未知或格式不符。"


class UnknownMeter(DomainError):
    code = "unknown_meter"
    en = "The plant has no meter of this name."
    zh = "该企业没有此名称的表计。"


class WrongKind(DomainError):
    code = "wrong_kind"
    en = "The meter is read as a register; it sends no intervals."
    zh = "该表计按示数抄读，不接受区间用量。"


class WrongUnit(DomainError):
    code = "wrong_unit"
    en = "The unit is not the meter's."
    zh = "单位与表计不符。"


class WrongMultiplier(DomainError):
    code = "wrong_multiplier"
    en = "The multiplier is not the meter's."
    zh = "倍率与表计不符。"


class FutureReading(DomainError):
    code = "future_reading"
    en = "The reading lies more than five minutes ahead."
    zh = "读数时间超前五分钟以上。"


class ValueOutOfRange(DomainError):
    code = "value_out_of_range"
    en = "The meter cannot show such a number."
    zh = "该数值超出表计量程。"


class ConflictingReading(DomainError):
    code = "conflicting_reading"
    en = "The slot has another reading, which stays; this one is kept beside it."
    zh = "该时段已有不同读数并予以保留；本读数另存备查。"


REFUSALS: dict[str, type[DomainError]] = {
    one.code: one
    for one in (
        MalformedReading,
        UnknownMeter,
        WrongKind,
        WrongUnit,
        WrongMultiplier,
        FutureReading,
        ValueOutOfRange,
        ConflictingReading,
    )
}
