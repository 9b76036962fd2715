"""Backups: all collections as they were at one cluster time, in one file, and their way back."""
