"""The second operator: what changes the programme for everybody takes two of them."""

from accounting.errors import DomainError


class SecondOperatorNeeded(DomainError):
    code = "second_operator_needed"
    en = "Another operator than the one who asked for this must approve it."
    zh = "须由申请人以外的另一名运营人员批准。"


def check(asked_by: str, approved_by: str, *, alone: bool) -> None:
    """Raise `SecondOperatorNeeded` unless two operators agree; `alone` (the demo) lets one."""
    if asked_by == approved_by and not alone:
        raise SecondOperatorNeeded()
