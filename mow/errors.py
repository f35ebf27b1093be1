"""Mistakes of the user, and the nearest right word for a wrong one."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake of the user; the message is one line with the remedy."""

    is_everywhere = True  # on all ranks of a run, so that rank 0 alone reports it


class RankFailure(RuntimeError):
    """Another rank of the run has ended or does not answer; the message is one line with its name."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean a, b, c?` out of what there is."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5) or known[:3]
    return f"did you mean {', '.join(close)}?"
