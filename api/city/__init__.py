"""A made-up city at any size: people, their partners' files, bills and plants (docs/city.md)."""
