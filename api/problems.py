"""Every refusal as `application/problem+json` (RFC 9457), in Chinese or English.

The rooms below raise refusals with a stable code; `STATUS` is the one place where HTTP meets them.
What is in nobody's table is our own mistake: it becomes a 500 and a log line, and the caller learns
nothing but the request id.
"""

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

import marshmallow as ma
import mongoengine.connection
import pymongo.errors
import redis.exceptions
from flask import Flask, Response, current_app, g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

from accounting.errors import (
    DomainError,
    Forbidden,
    Language,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
    ValidationFailed,
)

CONTENT_TYPE = "application/problem+json"
ERRORS_MAX = 100

STATUS: dict[str, int] = {
    "malformed_request": 400,
    "unauthenticated": 401,
    "invalid_code": 401,
    "invalid_signature": 401,
    "forbidden": 403,
    "proof_not_accepted": 403,
    "wrong_merchant": 403,
    "name_not_matching": 403,
    "real_name_needed": 403,
    "second_operator_needed": 403,
    "url_not_accepted": 403,
    "url_expired": 403,
    "behaviour_not_allowed": 403,
    "carrier_not_allowed": 403,
    "id_not_in_namespace": 403,
    "not_found": 404,
    "no_grade_available": 404,
    "no_report_available": 404,
    "account_not_linked": 404,
    "corrected_bill_unknown": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "account_busy": 409,
    "account_in_use": 409,
    "book_not_proven": 409,
    "job_over": 409,
    "job_not_cancelled": 409,
    "request_in_progress": 409,
    "source_event_conflict": 409,
    "version_exists": 409,
    "first_day_taken": 409,
    "proposal_waiting": 409,
    "nothing_proposed": 409,
    "approved_too_late": 409,
    "already_linked": 409,
    "alert_closed": 409,
    "plant_exists": 409,
    "certificate_used": 409,
    "green_power_exceeds_purchase": 409,
    "node_exists": 409,
    "meter_exists": 409,
    "change_exists": 409,
    "actual_stands": 409,
    "household_full": 409,
    "members_conflict": 409,
    "members_below_joined": 409,
    "bill_overlaps": 409,
    "already_corrected": 409,
    "already_reversed": 409,
    "already_appealed": 409,
    "already_decided": 409,
    "not_appealable": 409,
    "not_creditable": 409,
    "claim_held": 409,
    "photos_not_wanted": 409,
    "too_many_photos": 409,
    "nothing_to_reverse": 409,
    "not_a_file": 409,
    "insufficient_points": 409,
    "too_many_holds": 409,
    "hold_over": 409,
    "hold_closed": 409,
    "nothing_passed": 409,
    "out_of_stock": 409,
    "limit_reached": 409,
    "reward_unavailable": 409,
    "stock_promised": 409,
    "stock_too_large": 409,
    "too_many_stores": 409,
    "too_many_credentials": 409,
    "voucher_used": 409,
    "voucher_expired": 409,
    "voucher_cancelled": 409,
    "voucher_not_used": 409,
    "refund_window_over": 409,
    "period_closed": 409,
    "period_not_continuous": 409,
    "settlement_underway": 409,
    "dispute_resolved": 409,
    "too_many_webhooks": 409,
    "too_many_uploads": 409,
    "upload_over": 409,
    "upload_gap": 409,
    "upload_busy": 409,
    "push_over": 409,
    "consent_refused_recently": 409,
    "consent_request_over": 409,
    "last_key": 409,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_key_reused": 422,
    "validation_failed": 422,
    "upload_too_long": 422,
    "manifest_invalid": 422,
    "manifest_mismatch": 422,
    "file_unreadable": 422,
    "file_not_taken": 422,
    "invalid_link_code": 422,
    "invalid_qr": 422,
    "scan_too_old": 422,
    "period_not_over": 422,
    "photo_unreadable": 422,
    "missing_factor": 422,
    "malformed_reading": 422,
    "unknown_meter": 422,
    "wrong_kind": 422,
    "wrong_unit": 422,
    "wrong_multiplier": 422,
    "future_reading": 422,
    "value_out_of_range": 422,
    "conflicting_reading": 409,
    "rate_limited": 429,
    "internal_error": 500,
    "unavailable": 503,
}


class MalformedRequest(DomainError):
    """The request cannot be read at all. Facts: en, zh (what is wrong with it)."""

    code = "malformed_request"
    en = "{en}"
    zh = "{zh}"

    def __init__(self, en: str = "The request cannot be read.", zh: str = "请求无法解析。") -> None:
        super().__init__(en=en, zh=zh)


class MethodNotAllowed(DomainError):
    code = "method_not_allowed"
    en = "This address does not take that method; see the Allow header."
    zh = "该地址不支持此方法，请查看 Allow 响应头。"


class NotAcceptable(DomainError):
    code = "not_acceptable"
    en = "The answer is not available in a media type the caller accepts."
    zh = "无法以调用方接受的媒体类型作答。"


class PayloadTooLarge(DomainError):
    code = "payload_too_large"
    en = "The body is larger than this address takes."
    zh = "请求体超过该地址允许的大小。"


class UnsupportedMediaType(DomainError):
    """Facts: wanted (the media type this address takes)."""

    code = "unsupported_media_type"
    en = "Send the body as {wanted}, without Content-Encoding."
    zh = "请以 {wanted} 发送请求体，且不要使用 Content-Encoding。"

    def __init__(self, wanted: str = "application/json") -> None:
        super().__init__(wanted=wanted)


class RequestInProgress(DomainError):
    """The first request with this Idempotency-Key has not ended. Facts: retry_after (s)."""

    code = "request_in_progress"
    en = "The first request with this key is still running; try again in {retry_after} s."
    zh = "使用该幂等键的首个请求仍在处理中，请在 {retry_after} 秒后重试。"
    final = False


class InternalError(DomainError):
    code = "internal_error"
    en = "Something went wrong on our side. Tell us the request id."
    zh = "服务内部出错，请将 request_id 告知我们。"
    final = False


class Invalid(DomainError):
    """One or more fields cannot be accepted; `errors` are (JSON pointer, English message)."""

    code = "validation_failed"
    en = "The request is well-formed but cannot be accepted: {first_en}"
    zh = "请求内容不符合要求：{first_zh}"

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        pointer, message = errors[0] if errors else ("", "Invalid value.")
        name = pointer.removeprefix("/") or "body"
        super().__init__(
            first_en=f"{name}: {message}",
            first_zh=f"{name}：{translated(message, 'zh')}",
        )
        self.errors = errors[:ERRORS_MAX]

    @classmethod
    def of(cls, error: ma.ValidationError) -> "Invalid":
        """From what a marshmallow schema said; also for the items of a batch."""
        return cls(list(_flat(error.messages, "")))


# What marshmallow and our fields say, in Chinese. Anything not listed is answered in English.
_CHINESE: tuple[tuple[str, str], ...] = (
    (r"Missing data for required field\.", "缺少必填字段。"),
    (r"Not an event for this kind of caller\.", "该类调用方不能订阅此事件。"),
    (r"Only a gateway of a plant names a plant\.", "只有工厂网关可以指定工厂。"),
    (r"Unknown field\.", "未知字段。"),
    (r"Field may not be null\.", "不能为 null。"),
    (r"Invalid (?:value|input|type|input type)\.", "值无效。"),
    (r"Not a valid string\.", "应为字符串。"),
    (r"Not a valid utf-8 string\.", "应为 UTF-8 字符串。"),
    (r"Not a valid integer\.", "应为整数。"),
    (r"Not a valid number\.", "应为 JSON 数字。"),
    (r"Number too large\.", "数字过大。"),
    (r"At most (\d+) decimal places\.", r"最多 \1 位小数。"),
    (r"Not a valid boolean\.", "应为 true 或 false。"),
    (r"Not a valid list\.", "应为数组。"),
    (r"Not a valid mapping type\.", "应为对象。"),
    (r"Not a month \(YYYY-MM\)\.", "应为月份（YYYY-MM）。"),
    (
        r"Either material and quantity_t, or co2e_kg\.",
        "应填写 material 与 quantity_t，或填写 co2e_kg。",
    ),
    (r"Not a valid RFC 3339 instant with offset\.", "应为带时区偏移的 RFC 3339 时间。"),
    (r"Not a valid day \(YYYY-MM-DD\)\.", "应为日期（YYYY-MM-DD）。"),
    (
        r"Not a valid day or RFC 3339 instant\.",
        "应为日期或带时区偏移的 RFC 3339 时间。",
    ),
    (r"Not a valid (?:\w+ )?(?:datetime|date|time)\.", "日期或时间无效。"),
    (r"Not a valid UUID\.", "应为 UUID。"),
    (r"Not a valid URL\.", "应为 URL。"),
    (r"Not a valid page cursor\.", "分页游标无效。"),
    (r"Not a mapping profile of yours for (\w+)\.", r"贵方没有可用于 \1 的该映射配置。"),
    (r"Only a CSV can be in another encoding than UTF-8\.", "仅 CSV 可采用 UTF-8 以外的编码。"),
    (r"Must not exceed the quantity\.", "不得超过 quantity。"),
    (r"Send rule, campaign or both\.", "请提供 rule、campaign 或两者。"),
    (r"Not a known funder\.", "未知的出资方。"),
    (r"Give subject or actor, not both\.", "subject 与 actor 只能给一个。"),
    (r"Must be less than (\w+)\.", r"应小于 \1。"),
    (r"Must exceed (\w+)\.", r"应大于 \1。"),
    (r"Must be one of: (.*)\.", r"应为以下之一：\1。"),
    (r"Must be equal to (.*)\.", r"应等于 \1。"),
    (
        r"Must be greater than or equal to (\S+) and less than or equal to (\S+)\.",
        r"应在 \1 与 \2 之间。",
    ),
    (
        r"Must be greater than (\S+) and less than or equal to (\S+)\.",
        r"应大于 \1 且不超过 \2。",
    ),
    (r"Must be greater than or equal to (\S+)\.", r"应不小于 \1。"),
    (r"Must be less than or equal to (\S+)\.", r"应不大于 \1。"),
    (r"Must be greater than (\S+)\.", r"应大于 \1。"),
    (r"Must be less than (\S+)\.", r"应小于 \1。"),
    (r"Length must be between (\d+) and (\d+)\.", r"长度应在 \1 与 \2 之间。"),
    (r"Length must be (\d+)\.", r"长度应为 \1。"),
    (r"Shorter than minimum length (\d+)\.", r"长度不足 \1。"),
    (r"Longer than maximum length (\d+)\.", r"长度超过 \1。"),
    (r"String does not match expected pattern\.", "格式不符合要求。"),
    (r"1 to (\d+) printable ASCII characters\.", r"应为 1 至 \1 个可打印 ASCII 字符。"),
    (r"Not a valid phone number\.", "手机号码无效。"),
    (r"Not a known behaviour\.", "未知的行为。"),
    (r"A month is named twice\.", "同一月份出现了两次。"),
    (r"There is no such (?:bank|partner|client)\.", "没有这样的机构。"),
    (r"Must not lie before (\w+)\.", r"不得早于 \1。"),
    (r"Must not lie after (\w+)\.", r"不得晚于 \1。"),
    (r"Must lie after (\w+)\.", r"应晚于 \1。"),
    (r"Must lie in the future, at most five years\.", "应为未来五年之内的时间。"),
    (r"Not a text that was in force\.", "不是曾生效的文本版本。"),
    (r"Not a known grade\.", "不是已知的等级。"),
    (r"At most 3 decimal places\.", "最多 3 位小数。"),
    (
        r"The 32 raw bytes of an Ed25519 public key in base64\.",
        "应为 Ed25519 公钥 32 字节的 Base64 编码。",
    ),
    (
        r"Must not be before `from`, nor more than a year after it\.",
        "不得早于 from，且至多相隔一年。",
    ),
    (r"At most (\d+) days\.", r"最多 \1 天。"),
    (r"Send either sample or whole\.", "sample 与 whole 应二者择一。"),
    (r"Not a known funder\.", "未知的出资方。"),
    (r"Send either funder_id or funders\.", "funder_id 与 funders 应二者择一。"),
    (r"The percents must sum to 100\.", "各出资方比例之和须为 100。"),
    (r"A funder appears twice\.", "出资方重复。"),
    (r"The row does not have as many cells as the header\.", "该行的单元格数与表头不一致。"),
    (r"Send either code or qr_payload\.", "code 与 qr_payload 应二者择一。"),
    (r"Give subject or actor, not both\.", "subject 与 actor 只能给出一个。"),
    (
        r"Send partner_id and external_id, or carrier and account_no\.",
        "请提供 partner_id 与 external_id，或 carrier 与 account_no。",
    ),
)
_CHINESE_OF = tuple((re.compile(pattern), text) for pattern, text in _CHINESE)

_REFUSALS_OF_HTTP: dict[int, type[DomainError]] = {
    400: MalformedRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    406: NotAcceptable,
    413: PayloadTooLarge,
    415: UnsupportedMediaType,
}

# The store or Redis is away or changing its primary. Nothing is wrong; the caller may come back.
AWAY: tuple[type[Exception], ...] = (
    pymongo.errors.ConnectionFailure,
    pymongo.errors.ExecutionTimeout,
    pymongo.errors.WTimeoutError,
    mongoengine.connection.ConnectionFailure,
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
)


class ProblemItem(ma.Schema):
    pointer = ma.fields.String(
        required=True,
        metadata={"description": "JSON pointer to the field, or /name of a query field or header"},
    )
    message = ma.fields.String(required=True)


class Problem(ma.Schema):
    """The shape of every refusal; it documents what `describe` makes."""

    type = ma.fields.String(required=True, metadata={"format": "uri-reference"})
    title = ma.fields.String(required=True)
    status = ma.fields.Integer(required=True)
    detail = ma.fields.String(required=True, metadata={"description": "zh, or en if asked for"})
    code = ma.fields.String(required=True, metadata={"description": "stable; branch on this"})
    request_id = ma.fields.String(required=True)
    errors = ma.fields.List(
        ma.fields.Nested(ProblemItem),
        metadata={"description": "with `validation_failed`"},
    )


def language() -> Language:
    """The reader's language by Accept-Language; Chinese unless English is preferred."""
    # Not `best_match`: it finds `en` in "zh-CN,en;q=0.5", because only that one matches exactly.
    for tag, quality in request.accept_languages:
        primary = tag.lower().split("-")[0]
        if quality > 0 and primary in ("zh", "en"):
            return "en" if primary == "en" else "zh"
    return "zh"


def translated(message: str, to: Language) -> str:
    """A validation message in the reader's language."""
    if to == "en":
        return message
    for pattern, chinese in _CHINESE_OF:
        match = pattern.fullmatch(message)
        if match:
            return match.expand(chinese)
    return message


def describe(error: DomainError, to: Language | None = None) -> dict[str, Any]:
    """The problem as a JSON object; also for the items of a batch answer."""
    to = to or language()
    body: dict[str, Any] = {
        "type": f"urn:tanhui:problem:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": STATUS[error.code],
        "detail": error.text(to),
        "code": error.code,
        "request_id": g.get("request_id", ""),
    }
    if isinstance(error, Invalid):
        body["errors"] = [
            {"pointer": pointer, "message": translated(message, to)}
            for pointer, message in error.errors
        ]
    elif isinstance(error, ValidationFailed):
        body["errors"] = [{"pointer": error.facts["pointer"], "message": error.text(to)}]
    return body


def item(error: DomainError) -> dict[str, Any]:
    """The refusal of one item among many, as its result."""
    return {"status_code": STATUS[error.code], "problem": describe(error)}


def answer(error: DomainError, status: int | None = None) -> Response:
    """The HTTP answer of a refusal."""
    body = describe(error)
    if status is not None:
        body["status"] = status
    response = Response(
        current_app.json.dumps(body), status=body["status"], content_type=CONTENT_TYPE
    )
    response.content_language.add(language())
    response.vary.add("Accept-Language")
    response.cache_control.no_store = True
    if "retry_after" in error.facts:
        response.headers["Retry-After"] = str(max(1, int(error.facts["retry_after"])))
    if body["status"] == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="tanhui"'
    return response


def answer_http(error: HTTPException) -> Response:
    """What werkzeug or Flask refused: unknown address, wrong method, oversize body, our own 500."""
    status = error.code or 500
    if status >= 500:
        return answer(InternalError())
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return answer(RateLimited(retry_after=1))
    response = answer(_REFUSALS_OF_HTTP.get(status, MalformedRequest)(), status)
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = dict(error.get_headers()).get("Allow", "")
    return response


def register(app: Flask) -> None:
    """Make the application answer every refusal and every failure in this shape."""
    app.register_error_handler(DomainError, answer)
    for away in AWAY:
        app.register_error_handler(away, _answer_away)
    # A body in chunks that are none, found out only as it is read.
    app.register_error_handler(ParseException, lambda _: answer(MalformedRequest()))


def _answer_away(error: Exception) -> Response:
    current_app.logger.warning("a part is away: %s", type(error).__name__, exc_info=error)
    return answer(Unavailable("Tanhui"))


def _flat(messages: Any, pointer: str) -> Iterator[tuple[str, str]]:
    """marshmallow nests its messages as the content nests; leaves are lists of texts."""
    if isinstance(messages, Mapping):
        for key, inner in messages.items():
            step = "" if key == "_schema" else "/" + _escaped(str(key))
            yield from _flat(inner, pointer + step)
    elif isinstance(messages, str):
        yield pointer, messages
    else:
        for message in messages:
            yield from _flat(message, pointer)


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")
