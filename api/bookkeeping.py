"""What the rooms know of the book, for whoever checks it: the command, the nightly proof."""

from accounting.verifying import Rules
from footprint import intake
from points.wallet import consistent

RULES = Rules(checks=(consistent,), steps=(intake.follows,))
