"""What the people of the demo do on a day: commutes with two peaks, errands, a bin once a week."""

from dataclasses import dataclass
from random import Random
from typing import Any

Row = dict[str, Any]

# `day` counts back from the day the demo is first played, taken as a Friday: 1 is Thursday.
WEEKEND = (5, 6)
APP_DAYS = 28
DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Habit:
    """How often, as a chance a day or a week; `days` is how long they have taken part."""

    days: int
    bus_a_day: float
    bike_a_day: float
    charges_a_week: float
    recycling_a_week: float
    recycling_kg: float
    carpools_a_week: float
    payments_a_day: float
    counts_steps: float


# The roles are named after the grade that must come of them.
HABITS = {
    "deep": Habit(168, 0.06, 0.10, 1.2, 0.60, 4.5, 0.1, 0.04, 0.4),
    "mid": Habit(168, 0.20, 0.10, 0.0, 0.50, 3.2, 0.7, 0.04, 0.4),
    "light": Habit(168, 0.06, 0.12, 0.0, 0.12, 1.5, 0.0, 0.05, 0.4),
    "unrated": Habit(20, 0.30, 0.25, 0.0, 0.30, 2.0, 0.1, 0.30, 0.6),
}
LATE_LINKER = Habit(60, 0.35, 0.0, 0.0, 0.3, 2.5, 0.0, 0.0, 0.0)
CATEGORIES = ("paper", "paper", "plastic", "glass", "textile", "metal")


def clock_time(minutes: float) -> str:
    """Minutes after midnight as a local time; the seconds make instants distinct."""
    seconds = max(0, min(int(minutes * 60), DAY_MINUTES * 60 - 1))
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class Life:
    """The rows of one resident. `app`, `mobility` and `payments` are the doors they go through."""

    def __init__(self, who: int, habit: Habit, random: Random) -> None:
        self.who = who
        self.habit = habit
        self.random = random
        self.app: list[Row] = []
        self.mobility: list[Row] = []
        self.payments: list[Row] = []
        self._home_km = random.uniform(5, 11)
        self._line = f"K{random.randint(1, 24)}"

    def live(self) -> None:
        for day in range(self.habit.days, 0, -1):
            self._move(day)
            self._charge_and_recycle(day)
            self._pay(day)
            if day <= APP_DAYS and self._chance(self.habit.counts_steps):
                self._walk(day)

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _move(self, day: int) -> None:
        """There and back by one mode, with the peaks of a working day."""
        free = day % 7 in WEEKEND
        thin = 0.3 if free else 1.0
        morning, evening = (
            (self.random.gauss(630, 60), self.random.gauss(960, 70))
            if free
            else (self.random.gauss(468, 20), self.random.gauss(1058, 32))
        )
        drawn = self.random.random()
        if drawn < self.habit.bus_a_day * thin:
            for start in (morning, evening):
                self._bus(day, start)
        elif drawn < (self.habit.bus_a_day + self.habit.bike_a_day) * thin and day <= APP_DAYS:
            for start in (morning, evening):
                self._bike(day, start)
        elif self._chance(self.habit.carpools_a_week / 5 * thin):
            km = round(self.random.uniform(12, 34), 1)
            order = f"pool-{self.who}-{day}"
            self._travel(day, morning, "carpool_km", km, km * 1.9, order=order, role="passenger")

    def _bus(self, day: int, start: float) -> None:
        km = round(self._home_km * self.random.uniform(0.9, 1.15), 1)
        if self._chance(0.05):
            # Paid with a ticket, so the length is unknown.
            self._travel(day, start, "bus_km", 1, None, line=self._line, trip=True)
        else:
            self._travel(day, start, "bus_km", km, km * 3.4, line=self._line)

    def _bike(self, day: int, start: float) -> None:
        km = round(min(self._home_km, 5) * self.random.uniform(0.7, 1.2), 2)
        if self._chance(0.04):
            # A tour: two of them are over the day's cap.
            km = round(self.random.uniform(11, 14.5), 2)
        minutes = max(round(km / self.random.uniform(11, 17) * 60), 1)
        self.app.append(self._row(day, start, "bike_km", km) | {"minutes": minutes, "by": "gps"})

    def _walk(self, day: int) -> None:
        steps = int(self.random.lognormvariate(8.95, 0.45))
        by = "manual" if self._chance(0.03) else "pedometer"
        at = self.random.uniform(1275, 1380)
        self.app.append(self._row(day, at, "walk_steps", min(steps, 58_000)) | {"by": by})

    def _charge_and_recycle(self, day: int) -> None:
        if self._chance(self.habit.charges_a_week / 7):
            kwh = round(self.random.uniform(6, 34), 2)
            self._travel(day, 1200, "ev_charge_kwh", kwh, None, vehicle=f"ev-{self.who}")
        if self._chance(self.habit.recycling_a_week / 7):
            kg = round(self.habit.recycling_kg * self.random.uniform(0.7, 1.3), 2)
            attributes = {"slip": f"slip-{self.who}-{day}"}
            if self._chance(0.6):
                attributes["category"] = self.random.choice(CATEGORIES)
            at = self.random.uniform(1050, 1200)
            self._travel(day, at, "recycle_kg", kg, None, **attributes)
        if self._chance(self.habit.recycling_a_week / 14):
            self._travel(day, 1130, "carton_return", 1, None, waybill=f"way-{self.who}-{day}")

    def _travel(
        self, day: int, start: float, behaviour: str, quantity: float, minutes: float | None,
        **attributes: Any,
    ) -> None:  # fmt: skip
        row = self._row(day, start, behaviour, quantity)
        if minutes is not None:
            row["minutes"] = max(round(minutes), 1)
        self.mobility.append(row | {"attributes": attributes})

    def _pay(self, day: int) -> None:
        if self._chance(self.habit.payments_a_day):
            for _ in range(self.random.choice((1, 1, 1, 2))):
                fen = int(self.random.lognormvariate(7.6, 0.9))
                shop = f"shop-{self.random.randint(1, 60)}"
                self._paid(day, "mobile_pay_offline", amount_fen=fen, merchant=shop)
        if self._chance(self.habit.payments_a_day / 4):
            self._paid(day, "online_transfer")
        if self._chance(self.habit.payments_a_day / 6):
            self._paid(day, "e_invoice", invoice=f"inv-{self.who}-{day}")
        if self._chance(self.habit.payments_a_day / 8):
            self._paid(day, "no_tableware", order=f"meal-{self.who}-{day}")
        if self._chance(self.habit.payments_a_day / 14):
            order = f"rail-{self.who}-{day}"
            self._paid(day, "train_ticket_online", order=order)
        if day % 30 == 12:
            meter = f"meter-{self.who}"
            self._paid(day, "utility_pay_online", amount_fen=8_700, meter_account=meter)
            # `m-2` is the month before last, whenever the demo is played.
            month = f"m-{day // 30 + 1}"
            self._paid(day, "e_statement", card=f"visa-{self.who}", billing_month=month)

    def _paid(self, day: int, behaviour: str, **attributes: Any) -> None:
        at = self.random.choice((self.random.gauss(735, 25), self.random.gauss(1150, 45)))
        self.payments.append(self._row(day, at, behaviour, 1) | {"attributes": attributes})

    def _row(self, day: int, at: float, behaviour: str, quantity: float) -> Row:
        return {
            "who": self.who,
            "behaviour": behaviour,
            "quantity": quantity,
            "day": day,
            "at": clock_time(at),
        }
