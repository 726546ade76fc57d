"""What a fit will do and how long that takes, measured on this machine before the start."""

from __future__ import annotations
