"""The shared accounting core: errors, city clock, exact quantities, the book, accounts, consents.

Nothing in here knows residents' methodology, points, rewards or HTTP; the rooms above build on it.
"""
