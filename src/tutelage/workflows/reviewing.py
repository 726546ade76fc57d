"""The verb `review`: look through pseudo-labels, hand them to an annotation tool, take back what people said."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def review(
    run: str | Path,
    *,
    out: str | Path = "",
    serve: bool = False,
    export: str = "",
    import_: str | Path = "",
    limit: int = 200,
    round_: int = 0,
) -> dict[str, Any]:
    """Writes a page to look through the pseudo-labels of a run; or exports them, or takes verdicts in.

    Args:
        run: a finished run, or a pseudo-label store.
        out: folder of page, exports and `verdicts.json`; `run/review` when empty.
        serve: show the page on the loopback address and save verdicts directly, until Ctrl-C.
        export: write the chosen images for a tool instead: label-studio, cvat, coco or fiftyone.
        import_: take in what such a tool wrote instead; new verdicts are laid over those that are there.
        limit: images that are shown or exported, the most informative first; 0 is all.
        round_: whose pseudo-labels; 0 is the last.

    Returns:
        What was written.

    Raises:
        InputError: there is no store, or a file is malformed.
    """
    raise NotImplementedError(str(run))
