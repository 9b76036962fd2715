"""How a process that serves or works looks for garbage."""

import gc

# Reference counts free nearly everything; a batch of a thousand rows is some ten thousand objects
# that all live to its end, and were looked through a hundred times.
YOUNG_MAX = 10_000


def settle() -> None:
    """To be called once a process is up: what it was started with lives as long as it does."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX)
