"""A store of pseudo-boxes for the page: scores, classes, and the surest and least sure as pictures."""

from __future__ import annotations

from markupsafe import Markup

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore
from tutelage.data.thumbnails import Album
from tutelage.reporting.boxes.read import summarize_store
from tutelage.reporting.boxes.scenes import crops
from tutelage.reporting.figures import histogram_figure
from tutelage.reporting.pseudo import StoreView, threshold_marks

NUM_CROPS = 12


def view_store(store: PseudoStore, pseudo: PseudoConfig, class_names: tuple[str, ...], album: Album) -> StoreView:
    """A store under the threshold of `pseudo`.

    Raises:
        InputError: a part is missing or damaged; thresholds by class that do not fit.
    """
    summary = summarize_store(store, pseudo, class_names, NUM_CROPS)
    title = "Scores of the teacher's detections in the pool"
    drawn = histogram_figure(summary.histogram, threshold_marks(pseudo), title=title, xlabel="score", ylabel="boxes")
    return StoreView(
        ("Scores of all stored detections", Markup(drawn)),
        summary.kept_per_class,
        crops(summary.surest, class_names, album),
        crops(summary.least_sure, class_names, album),
    )
