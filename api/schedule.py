"""All clockwork in one list: what beat starts, and how often (seconds, or a time of the city)."""

from typing import Any

from celery.schedules import crontab

SCHEDULE: dict[str, dict[str, Any]] = {
    "carry notifications that concern the resident": {
        "task": "tanhui.carry_service",
        "schedule": 15.0,
    },
    "carry events to webhooks": {
        "task": "tanhui.sweep_webhooks",
        "schedule": 15.0,
    },
    "carry marketing": {
        "task": "tanhui.carry_marketing",
        "schedule": 15.0,
    },
    "forget devices that were not seen for 270 days": {
        "task": "tanhui.drop_idle_devices",
        "schedule": crontab(hour=3, minute=10),
    },
    "give waiting jobs to a worker": {
        "task": "tanhui.sweep_jobs",
        "schedule": 20.0,
    },
    "finish what a crash left half-way": {
        "task": "tanhui.sweep_half_done",
        "schedule": 30.0,
    },
    "end the vouchers nobody used, and give points back": {
        "task": "tanhui.expire_vouchers",
        "schedule": crontab(hour=0, minute=40),
    },
    "validate the days of meters that had new readings": {
        "task": "tanhui.validate_readings",
        "schedule": 20.0,
    },
    "count the days of plants whose meters changed": {
        "task": "tanhui.count_inventory",
        "schedule": 20.0,
    },
    "post the days of plants that are over to the book": {
        "task": "tanhui.post_inventory",
        "schedule": crontab(hour=3, minute=40),
    },
    "look for alerts in the days of plants that changed": {
        "task": "tanhui.watch_plants",
        "schedule": 20.0,
    },
    "listen for meters that fell silent": {
        "task": "tanhui.listen_to_meters",
        "schedule": 300.0,
    },
    "look at every plant for what changes by the day": {
        "task": "tanhui.review_plants",
        "schedule": crontab(hour=3, minute=30),
    },
    "write down what matured and expired in quiet accounts": {
        "task": "tanhui.let_time_pass",
        "schedule": crontab(hour=0, minute=10),
    },
    "slow and stop funders whose pools run low, add up the programme": {
        "task": "tanhui.keep_pools",
        "schedule": 15.0,
    },
    # Asked every night and done once a month: a city that was down on the first is not left out.
    "grade everybody, once a month": {
        "task": "tanhui.grade_everybody",
        "schedule": crontab(hour=2, minute=30),
    },
    "add up what funders owe in all wallets": {
        "task": "tanhui.add_up_liability",
        "schedule": crontab(hour=1, minute=30),
    },
    "prove the book": {
        "task": "tanhui.prove_the_book",
        "schedule": crontab(hour=1, minute=0),
    },
    "bring summaries to the heads and check their sums": {
        "task": "tanhui.keep_summaries",
        "schedule": crontab(hour=2, minute=30),
    },
    "tell residents of consents that end within a week": {
        "task": "tanhui.remind_of_consents",
        "schedule": crontab(hour=9, minute=0),
    },
    # Asked every hour and told once, in the morning: who was down at nine leaves nobody out.
    "tell residents of vouchers that end within three days": {
        "task": "tanhui.remind_of_vouchers",
        "schedule": crontab(minute=20),
    },
    "tell residents which bank read their grade": {
        "task": "tanhui.tell_of_reads",
        "schedule": 60.0,
    },
    "look at all green lists, make the banks' files of the day": {
        "task": "tanhui.make_bank_files",
        "schedule": crontab(hour=0, minute=40),
    },
}


def for_beat() -> dict[str, dict[str, Any]]:
    """The list as beat takes it: a sweep that waited until the next one is due is dropped.

    So a worker that was away comes back to one sweep of a kind and not to a night of them.
    """
    return {
        name: {**entry, "options": {"expires": entry["schedule"]}}
        if isinstance(entry["schedule"], float)
        else entry
        for name, entry in SCHEDULE.items()
    }
