"""What a text may hold."""


def storable(text: str) -> bool:
    """Whether MongoDB can keep the text: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
