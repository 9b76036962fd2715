"""Rewards: the catalogue, redemptions, vouchers, merchants."""
