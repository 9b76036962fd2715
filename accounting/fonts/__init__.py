"""A font with Latin and Chinese glyphs that is there on every machine, for plots and documents."""

from pathlib import Path
from typing import Final

FAMILY: Final = "WenQuanYi Micro Hei"
# TrueType outlines, so that PDF libraries can embed it too.
FILE: Final = Path(__file__).parent / "WenQuanYiMicroHei-GBK.ttf"
