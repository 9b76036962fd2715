"""Refusals. Every one has a stable code and a text in Chinese and English.

A domain room raises a subclass of `DomainError`; `api/problems.py` is the one place that turns
codes into HTTP statuses. A code is part of the contract and never changes its meaning.
"""

from typing import Any, ClassVar, Literal

Language = Literal["zh", "en"]


class DomainError(Exception):
    """A refusal the caller should hear about.

    `facts` fill the placeholders of the texts and may be answered to the caller, so nothing secret
    goes in. `final` says whether asking again with the same key must give the same refusal.
    """

    code: ClassVar[str] = "refused"
    en: ClassVar[str] = "The request was refused."
    zh: ClassVar[str] = "请求被拒绝。"
    final: ClassVar[bool] = True

    def __init__(self, **facts: Any) -> None:
        super().__init__(self.code)
        self.facts = facts

    def text(self, language: Language = "zh") -> str:
        """The refusal in the reader's language, with its facts filled in."""
        return (self.zh if language == "zh" else self.en).format(**self.facts)

    def __str__(self) -> str:
        return f"{self.code}: {self.text('en')}"


class ValidationFailed(DomainError):
    """The content is well-formed but cannot be accepted. Facts: pointer, en, zh."""

    code = "validation_failed"
    en = "{en}"
    zh = "{zh}"

    def __init__(self, pointer: str, en: str, zh: str) -> None:
        super().__init__(pointer=pointer, en=en, zh=zh)


class Unauthenticated(DomainError):
    code = "unauthenticated"
    en = "Sign in first, or the credentials are wrong or expired."
    zh = "请先登录，或凭证错误、已过期。"
    final = False


class Forbidden(DomainError):
    code = "forbidden"
    en = "This caller may not do this."
    zh = "当前身份无权进行此操作。"


class NotFound(DomainError):
    code = "not_found"
    en = "There is no such thing here."
    zh = "没有找到对应内容。"


class KeyReused(DomainError):
    """The same key came with other content. Facts: key."""

    code = "idempotency_key_reused"
    en = "This key was already used for something else; use a new key for a new request."
    zh = "该幂等键已用于其他内容，新请求请使用新的键。"


class AccountBusy(DomainError):
    """Too many writers at the same account at once; nothing was written. Facts: retry_after (s)."""

    code = "account_busy"
    en = "This account is being written by others; try again in {retry_after} s."
    zh = "该账户正忙，请在 {retry_after} 秒后重试。"
    final = False


class Unavailable(DomainError):
    """A part the request needs is away. Facts: part, retry_after (s)."""

    code = "unavailable"
    en = "{part} is not available right now; try again in {retry_after} s."
    zh = "{part} 暂不可用，请在 {retry_after} 秒后重试。"
    final = False

    def __init__(self, part: str = "the service", retry_after: int = 5) -> None:
        super().__init__(part=part, retry_after=retry_after)


class RateLimited(DomainError):
    """Facts: retry_after (s)."""

    code = "rate_limited"
    en = "Too many requests; try again in {retry_after} s."
    zh = "请求过于频繁，请在 {retry_after} 秒后重试。"
    final = False
