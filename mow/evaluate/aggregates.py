"""Aggregates over tasks and runs, with intervals, of normalised scores [S runs, K tasks].

    mean            of all S * K scores
    median          over tasks of the mean over runs
    IQM             mean of the middle half of all S * K scores
    optimality gap  mean of max(0, 1 - score)

Intervals are 95 %, percentiles of a stratified bootstrap: runs are resampled within every task. This treats the tasks
of one run as independent, which they are not where one model learns all of them. Source: Agarwal et al. (2021).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AGGREGATES = ("mean", "median", "IQM", "optimality gap")
RESAMPLES = 2000
BOOTSTRAP = {"resamples": RESAMPLES, "confidence": 0.95, "seed": 0}  # as the JSON files record it

Interval = tuple[float, float]


@dataclass(frozen=True)
class Aggregate:
    """One number over tasks and runs."""

    value: float
    interval: Interval | None  # None for a single run


def aggregates(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores [..., S, K] -> the four AGGREGATES: [4, ...]."""
    every = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)  # [..., S * K]
    cut = every.shape[-1] // 4  # at each end, rounded down
    return np.stack([
        every.mean(axis=-1),
        np.median(scores.mean(axis=-2), axis=-1),
        every[..., cut : every.shape[-1] - cut].mean(axis=-1),
        np.maximum(0.0, 1.0 - every).mean(axis=-1),
    ])


def summarise(scores: NDArray[np.float64], *, resamples: int = RESAMPLES) -> dict[str, Aggregate]:
    """Scores [S, K] -> name of AGGREGATES -> aggregate, the same at every call; empty where there are no scores."""
    if scores.size == 0:
        return {}
    values = aggregates(scores).tolist()
    if len(scores) < 2:
        return {name: Aggregate(value, None) for name, value in zip(AGGREGATES, values, strict=True)}
    from scipy.stats import bootstrap

    # One sample per task: samples are resampled independently of each other, which makes the bootstrap stratified.
    found = bootstrap(
        tuple(scores.T),
        lambda *tasks, axis: aggregates(np.stack(tasks, axis=-1)),  # K arrays [..., S] -> [4, ...]
        n_resamples=resamples,
        vectorized=True,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    ends = zip(found.low.tolist(), found.high.tolist(), strict=True)
    return {name: Aggregate(*both) for name, *both in zip(AGGREGATES, values, ends, strict=True)}
