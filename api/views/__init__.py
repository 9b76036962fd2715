"""The addresses: each module is one blueprint, each view is parse, one call, answer."""

from api.openapi import Blueprint
from api.views import (
    activities,
    auth,
    bank,
    explanations,
    feeds,
    funders,
    grades,
    households,
    me,
    merchant,
    methodology,
    operator,
    operator_audit,
    operator_jobs,
    reviews,
    system,
    tokens,
    wallet,
)

BLUEPRINTS: tuple[Blueprint, ...] = (
    system.blueprint,
    tokens.blueprint,
    auth.blueprint,
    me.blueprint,
    activities.blueprint,
    explanations.blueprint,
    reviews.blueprint,
    wallet.blueprint,
    households.blueprint,
    grades.blueprint,
    feeds.blueprint,
    merchant.blueprint,
    bank.blueprint,
    operator.blueprint,
    methodology.blueprint,
    funders.blueprint,
    operator_jobs.blueprint,
    operator_audit.blueprint,
)
