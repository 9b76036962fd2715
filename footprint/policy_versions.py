"""Versions of the grade policy that operators publish; see `accounting/publishing.py`."""

from accounting import publishing, storage
from accounting.grading import Policy
from accounting.publishing import Register
from footprint import grade_policies
from footprint.grade_policies import PolicyError


@storage.indexed
class PolicyDocument(publishing.VersionDocument):
    meta = {"collection": "grade_policies"}


register: Register[Policy] = Register(
    PolicyDocument, grade_policies, noun="grade policy", zh="等级规则", error=PolicyError
)
