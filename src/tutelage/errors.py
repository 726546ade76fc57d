"""What a user can mend; apart from `types`, so that the command line answers without loading torch."""

from __future__ import annotations


class InputError(ValueError):
    """Something a user can mend: bad data, a wrong option, a missing file.

    The message has the form *where: what was found; what is allowed. what to do.* The command line prints it without
    a traceback and exits with code 2.
    """
