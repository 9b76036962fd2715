"""Real processes that are really killed, so that recovery is tested and not imagined."""
