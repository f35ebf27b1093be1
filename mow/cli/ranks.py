"""One process of a run on several ranks: the roll call, then the run."""

import dataclasses
from collections.abc import Callable
from typing import Any

from mow.cli.resume import Resumption, find_resumption
from mow.config import RunConfig


def run_on_ranks(config: RunConfig, resumption: Resumption | None, run: Callable[..., Any]) -> None:
    """This process as one of the ranks of a run. Raises: UsageError on all of them where the launch is wrong."""
    from mow.engine.launch import join

    folder, checkpoint = (resumption.folder, resumption.checkpoint) if resumption else (None, None)
    with join(config, folder, checkpoint) as joined:
        if joined.goes_on_from is not None and resumption is None:  # the launcher has started the ranks again
            resumption = find_resumption(["--resume", str(joined.goes_on_from)])
        run(dataclasses.replace(config, folder=joined.folder), resumption, ranks=joined.ranks)
