"""The demo: people to try the product with, a day of a city, and the player that checks it."""
