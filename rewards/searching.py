"""Finding words inside texts, Chinese or English, with an index. Pure.

A text is kept as its pairs of neighbouring characters; a word is in it only if all of its pairs
are. Chinese has no blanks to cut words at, so nothing else works without a dictionary.
"""

import unicodedata

# Longer pieces of a search than this say nothing more about what is meant.
PIECES_MAX, PIECE_CHARS_MAX = 8, 32


def folded(text: str) -> str:
    """A text as it is compared: width, case and compatibility forms forgotten."""
    return unicodedata.normalize("NFKC", text).casefold()


def grams(*texts: str) -> list[str]:
    """What texts are found by: their characters and pairs of characters, within words."""
    found: set[str] = set()
    for word in (word for text in texts for word in folded(text).split()):
        found.update(word)
        found.update(word[place : place + 2] for place in range(len(word) - 1))
    return sorted(found)


def pieces(search: str) -> list[str]:
    """The words of a search, as they are compared."""
    return [word[:PIECE_CHARS_MAX] for word in folded(search).split()[:PIECES_MAX]]


def grams_of(word: str) -> list[str]:
    """What a text has that holds a word: its pairs, or the one character it is."""
    return [word[place : place + 2] for place in range(len(word) - 1)] or [word]
