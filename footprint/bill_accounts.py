"""All bills of one meter account, and what they mean for each other. Pure.

An account is read once and then answers what a bill overlaps, what ended it, and what it is worth,
also for bills that are only about to be stored. Whoever stores one takes the number after
the last bill seen here, so nothing can have come between the reading and the storing.
"""

from collections.abc import Iterable
from datetime import date

from accounting import clock
from footprint import billing_rules
from footprint.billing_rules import BASELINE_YEARS, PV_HOME, TIER_3, Judgement
from footprint.bills import Bill
from footprint.methodology import Behaviour, Methodology


class Account:
    """The rows of one meter account, in the order of their numbers."""

    def __init__(self, household: str, bills: Iterable[Bill] = ()) -> None:
        self.household = household
        self.bills: list[Bill] = []
        # By the id of the bill it ended.
        self._endings: dict[str, Bill] = {}
        for bill in bills:
            self.add(bill)

    def add(self, bill: Bill) -> None:
        assert bill.number == self.next_number, f"{bill.id} is not the next of {self.household}"
        self.bills.append(bill)
        if bill.corrects is not None:
            self._endings[bill.corrects] = bill

    @property
    def next_number(self) -> int:
        return self.bills[-1].number + 1 if self.bills else 1

    def ending(self, bill: Bill) -> Bill | None:
        """What corrected a bill or took it back."""
        return self._endings.get(bill.id)

    def live(self, first: date, last: date) -> list[Bill]:
        """The bills with a day from `first` to `last` that stand."""
        return [
            one
            for one in self.bills
            if one.period_start <= last
            and one.period_end >= first
            and not one.takes_back
            and one.id not in self._endings
        ]

    def judge(self, bill: Bill, *, overruled: bool = False) -> Judgement:
        """What the rules say of a bill of this account on what is known of it.

        `overruled` is after an upheld appeal: that it came late, that the home has solar panels or
        may have stood empty does not stand against it.
        """
        rules_then, behaviour = bill.rules
        reason = self._why_not(bill, rules_then, behaviour, overruled)
        if reason is not None:
            return Judgement("recorded", (reason,))
        stale = rules_then.stale(clock.city_day(bill.received_at))
        if bill.pv is not None:
            verdict = billing_rules.own_use(bill.pv)
            return billing_rules.judged(verdict, behaviour, bill.shares, stale=stale)
        years_ago = clock.add_months(clock.month_of(bill.period_start), -12 * max(BASELINE_YEARS))
        near = self.live(clock.first_day(years_ago), bill.period_end)
        if any(other.pv for other in near) and not overruled:
            return Judgement("recorded", (PV_HOME,))
        verdict = billing_rules.assess(
            bill.use,
            (other.use for other in near if other.id != bill.id and not other.estimated),
            tier_3=TIER_3.get(bill.carrier),
            lived_in=overruled,
        )
        return billing_rules.judged(verdict, behaviour, bill.shares, stale=stale)

    def _why_not(
        self, bill: Bill, rules_then: Methodology, behaviour: Behaviour, overruled: bool
    ) -> str | None:
        """Why a bill is not even compared with the years before."""
        if bill.takes_back:
            return "reversed"
        ending = self.ending(bill)
        if ending is not None:
            return "reversed" if ending.takes_back else "bill_corrected"
        if bill.estimated:
            return "bill_estimated"
        if bill.window_from - bill.over > rules_then.window.partner and not overruled:
            return "bill_history"
        return None if behaviour.enabled else "behaviour_disabled"
