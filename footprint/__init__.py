"""The resident footprint: methodology, activities, bills, summaries and the personal grade."""
