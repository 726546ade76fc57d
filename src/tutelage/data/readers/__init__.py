"""Readers of annotation formats; `open_index` is the door. Formats and their conventions: docs/formats.md."""

from tutelage.data.readers.locate import detect_format, locate
from tutelage.data.readers.opening import READERS, Opened, choose_split, open_index, open_source, unlisted_error
from tutelage.data.readers.source import Source

__all__ = [
    "READERS",
    "Opened",
    "Source",
    "choose_split",
    "detect_format",
    "locate",
    "open_index",
    "open_source",
    "unlisted_error",
]
