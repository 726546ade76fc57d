"""The pseudo-label store: what a teacher said of a pool, written once, read with any threshold."""

from tutelage.data.pseudo.masks import StoredMask
from tutelage.data.pseudo.provenance import write_provenance
from tutelage.data.pseudo.reading import PseudoStore, open_store, require_kept, score_limits, store_index
from tutelage.data.pseudo.shares import with_class_shares
from tutelage.data.pseudo.verdicts import Verdicts, merge, read_verdicts, write_verdicts
from tutelage.data.pseudo.writing import Leak, Manifest, Outcome, StoreWriter

__all__ = [
    "Leak",
    "Manifest",
    "Outcome",
    "PseudoStore",
    "StoreWriter",
    "StoredMask",
    "Verdicts",
    "merge",
    "open_store",
    "read_verdicts",
    "require_kept",
    "score_limits",
    "store_index",
    "with_class_shares",
    "write_provenance",
    "write_verdicts",
]
