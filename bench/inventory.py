"""A month of one plant of 100 meters (288,000 readings) by day, and what counting it costs.

Run: `python -m bench.inventory`.
"""

import random
from datetime import timedelta

from accounting import clock
from accounting.enterprise import inventory, inventory_days, periods, validating
from accounting.enterprise.inventory import By
from bench.meters import FIRST, add_meters, body_of, take_body
from bench.side_by_side import fresh_store, out, table, timed

DAYS = 30
ROUNDS = 9


def main() -> None:
    with fresh_store():
        add_meters("month", 100)
        chance = random.Random(3)
        for one in range(100):
            take_body("month", body_of(f"m{one}", chance, DAYS))
        last = FIRST + timedelta(days=DAYS - 1)
        validating.catch_up("month", FIRST, last)
        shown = table("a month of 100 meters, 3,000 meter-days", "", "ms")
        counted = timed(lambda: inventory_days.catch_up("month", FIRST, last))
        shown.add_row("counted from the validated layer", f"{counted * 1e3:,.0f}")
        for by in (By.DAY, By.MONTH, By.HOUR):
            spent = sorted(
                timed(lambda by=by: inventory.for_period("month", FIRST, last, by))
                for _ in range(ROUNDS)
            )
            shown.add_row(f"read by {by.value}, median of {ROUNDS}", f"{spent[4] * 1e3:,.0f}")
        posted = timed(lambda: periods.run(clock.now()))
        shown.add_row("posted to the book", f"{posted * 1e3:,.0f}")
        out.print(shown)


if __name__ == "__main__":
    main()
