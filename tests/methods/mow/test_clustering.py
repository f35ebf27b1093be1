"""Planted groups come back; the promises about sizes hold against adversaries; scores by hand."""

import math
import signal
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pytest
import torch

from mow.methods.mow.clustering import (
    Grouping,
    Labels,
    Vectors,
    adjusted_rand_index,
    from_labels,
    gradient_features,
    group_tasks,
    silhouette,
    spherical_kmeans,
    tensor_shares,
    unit_rows,
)


def labels(*values: int) -> Labels:
    return np.array(values, dtype=np.int64)


def agreement(grouping: Grouping, truth: Sequence[int]) -> float:
    """Adjusted Rand index with known groups of the tasks in the old order."""
    return adjusted_rand_index(np.array(grouping.module_of_task), np.array(truth)[list(grouping.order)])


def planted(sizes: list[int], num_features: int, noise: float, seed: int) -> tuple[Vectors, Labels]:
    """Vectors around one random direction per group, of random length, shuffled."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    directions = unit_rows(rng.normal(size=(len(sizes), num_features)))
    vectors = directions[truth] + noise / math.sqrt(num_features) * rng.normal(size=(len(truth), num_features))
    return vectors * rng.uniform(0.1, 100.0, size=(len(truth), 1)), truth


@pytest.mark.parametrize(
    ("averaging", "expected"),
    [("layer_mean", [[2.5, 6.5, 10.0, 20.0], [0.0, 1.0, 0.0, -3.0]]), ("tensor_mean", [[4.5, 15.0], [0.5, -1.5]])],
)
def test_features_by_hand(averaging: Literal["layer_mean", "tensor_mean"], expected: list[list[float]]) -> None:
    # A weight [K, 2 outputs, 4 inputs] and a bias [K, 2]; the mean over all but the output channel, or over all.
    weight = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]], [[-1, 1, -1, 1], [1, 1, 1, 1]]])
    bias = torch.tensor([[10.0, 20.0], [0.0, -3.0]])
    got = gradient_features({"weight": weight, "bias": bias}, averaging, "none")
    assert got.vectors.dtype == np.float64
    assert got.vectors.tolist() == expected
    assert list(got.sizes) == ["weight", "bias"]
    assert sum(got.sizes.values()) == len(expected[0])


def test_every_tensor_is_scaled_to_length_1_by_hand() -> None:
    weight, bias = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, -2e-20], [5.0, 0.0]])
    got = gradient_features({"weight": weight, "bias": bias}, "layer_mean", "per_tensor")
    assert got.vectors.tolist() == [[0.6, 0.8, 0.0, -1.0], [0.0, 0.0, 1.0, 0.0]]


def cosines(vectors: Vectors) -> Vectors:
    return unit_rows(vectors) @ unit_rows(vectors).T


@pytest.mark.parametrize("loud", ["weight", "kernel", "bias"])
def test_a_loud_tensor_changes_no_cosine(loud: str) -> None:
    shapes = {"weight": (6, 16, 8), "kernel": (6, 12, 3, 4, 4), "bias": (6, 3)}
    quiet = {name: torch.randn(shape) for name, shape in shapes.items()}
    louder = {name: gradient * (1000.0 if name == loud else 1.0) for name, gradient in quiet.items()}
    scaled, literal = (
        np.abs(
            cosines(gradient_features(louder, "layer_mean", scaling).vectors)
            - cosines(gradient_features(quiet, "layer_mean", scaling).vectors)
        ).max()
        for scaling in ("per_tensor", "none")
    )
    assert scaled < 1e-6  # float32 gradients
    assert literal > 0.05


def test_shares_of_tensors_by_hand() -> None:
    # Task 0: 9 of 25 and 16 of 25; task 1: 0 and all.
    vectors = np.array([[3.0, 0.0, 4.0], [0.0, 0.0, 2.0]])
    shares = tensor_shares(vectors, {"weight": 2, "bias": 1})
    assert list(shares) == ["bias", "weight"], "the largest first"
    assert shares["bias"] == pytest.approx((16 / 25 + 1) / 2)
    assert shares["weight"] == pytest.approx(9 / 50)


def test_groups_follow_most_tensors_and_not_the_loudest() -> None:
    """Eight tasks: nine tensors point by group, one with three entries and the largest gradient points across them."""
    rng = np.random.default_rng(0)
    truth, across = np.repeat([0, 1], 4), np.tile([0, 1], 4)

    def pointing(factor: Labels, size: int, length: float) -> torch.Tensor:
        direction = rng.normal(size=(2, size))
        return torch.from_numpy(length * (direction[factor] + 0.3 * rng.normal(size=(8, size))))

    gradients = {f"kernel {i}": pointing(truth, 16, 1.0) for i in range(9)}
    gradients["output bias"] = pointing(across, 3, 1000.0)
    found = {}
    for scaling in ("per_tensor", "none"):
        features = gradient_features(gradients, "layer_mean", scaling)  # type: ignore[arg-type]
        found[scaling] = group_tasks([features.vectors], 2, restarts=10, seed=0)
    assert agreement(found["per_tensor"], truth.tolist()) == 1.0
    assert agreement(found["none"], across.tolist()) == 1.0


def test_features_of_a_convolution_keep_one_number_per_output_channel() -> None:
    kernel = torch.randn(3, 8, 4, 5, 5)
    got = gradient_features({"kernel": kernel}, "layer_mean", "none").vectors
    np.testing.assert_allclose(got, kernel.double().mean(dim=(2, 3, 4)).numpy(), atol=1e-6)  # float32 means


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [[2, 2], [1, 3], [3, 4, 5], [2] * 6, [3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]])
def test_planted_groups_are_found(sizes: list[int], seed: int) -> None:
    vectors, truth = planted(sizes, num_features=64, noise=0.3, seed=seed)
    got = spherical_kmeans(unit_rows(vectors), len(sizes), restarts=50, seed=seed)
    assert adjusted_rand_index(got, truth) == 1.0


def adversaries() -> dict[str, Vectors]:
    rng = np.random.default_rng(0)
    giant = np.tile(rng.normal(size=8), (20, 1)) + 1e-3 * rng.normal(size=(20, 8))
    giant[:2] *= -1.0
    opposite = np.ones((20, 8)) * np.where(np.arange(20) % 2, 1.0, -1.0)[:, None]
    return {
        "equal": np.ones((20, 8)),
        "zero": np.zeros((20, 8)),
        "giant": giant,
        "opposite": opposite,
        "unrelated": rng.normal(size=(20, 8)),
    }


@pytest.mark.parametrize("num_clusters", [1, 2, 7, 12, 19, 20])
@pytest.mark.parametrize("name", adversaries())
def test_no_cluster_is_empty_or_above_the_cap(name: str, num_clusters: int) -> None:
    got = spherical_kmeans(unit_rows(adversaries()[name]), num_clusters, restarts=3, seed=0)
    size = np.bincount(got, minlength=num_clusters)
    assert len(size) == num_clusters
    assert size.min() >= 1
    assert size.max() <= math.ceil(2 * 20 / num_clusters)


@pytest.fixture
def _deadline() -> Iterator[None]:
    """A search that never ends becomes an error after 20 seconds; one that ends needs far less than one."""

    def too_late(*_: object) -> None:
        raise TimeoutError("the search goes round in circles")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_deadline")
@pytest.mark.parametrize("num_clusters", [7, 10, 12])
def test_ties_do_not_keep_the_search_going(num_clusters: int) -> None:
    # 26 tasks on eight directions and at zero: many groupings are equally good, and rounding picks among them.
    for seed in range(20):
        vectors = np.random.default_rng(seed).integers(-1, 2, size=(26, 2)).astype(float)
        got = spherical_kmeans(unit_rows(vectors), num_clusters, restarts=2, seed=0)
        assert np.bincount(got, minlength=num_clusters).min() >= 1


def test_the_cap_binds() -> None:
    # 18 alike and 2 opposite: free k-means would give clusters of 18, 1 and 1; the cap is ceil(40 / 3) = 14.
    got = spherical_kmeans(unit_rows(adversaries()["giant"]), 3, restarts=20, seed=0)
    assert np.bincount(got).max() <= 14
    assert got[0] == got[1], "the two that differ from the rest are still together"
    assert (got[2:] != got[0]).all()


def test_the_seed_decides() -> None:
    vectors = unit_rows(adversaries()["unrelated"])
    first, again = (spherical_kmeans(vectors, 5, restarts=1, seed=7) for _ in range(2))
    assert np.array_equal(first, again)
    others = [spherical_kmeans(vectors, 5, restarts=1, seed=seed) for seed in range(5)]
    assert any(adjusted_rand_index(first, other) < 1.0 for other in others), "one restart must feel the seed"


def test_silhouette_by_hand() -> None:
    # Distances 1 - cosine. Tasks 0, 1 together: a = 0.2. b to task 2: 0.8 for task 0, 0.6 for task 1. Task 2 is alone
    # and scores 0. Mean of (0.8 - 0.2) / 0.8 = 3/4, (0.6 - 0.2) / 0.6 = 2/3 and 0 is 17/36.
    similarity = np.array([[1.0, 0.8, 0.2], [0.8, 1.0, 0.4], [0.2, 0.4, 1.0]])
    assert silhouette(similarity, labels(0, 0, 1)) == pytest.approx(17 / 36)


@pytest.mark.parametrize("undefined", [(0, 0, 0), (0, 1, 2)])
def test_silhouette_of_one_group_or_of_singles_is_undefined(undefined: tuple[int, ...]) -> None:
    assert math.isnan(silhouette(np.eye(3), labels(*undefined)))


def test_adjusted_rand_index_by_hand() -> None:
    # Table [[2, 1], [0, 3]]: pairs together in both 1 + 3 = 4; in rows 3 + 3 = 6, in columns 1 + 6 = 7, of 15.
    # (4 - 6 * 7 / 15) / (6.5 - 6 * 7 / 15) = 1.2 / 3.7.
    assert adjusted_rand_index(labels(0, 0, 0, 1, 1, 1), labels(0, 0, 1, 1, 1, 1)) == pytest.approx(1.2 / 3.7)


def test_adjusted_rand_index_ignores_names_and_is_zero_by_chance() -> None:
    assert adjusted_rand_index(labels(0, 0, 1, 2), labels(5, 5, 9, 1)) == 1.0
    assert adjusted_rand_index(labels(0, 0, 0), labels(0, 1, 2)) == 0.0
    rng = np.random.default_rng(0)
    scores = [adjusted_rand_index(rng.integers(4, size=30), rng.integers(4, size=30)) for _ in range(300)]
    assert abs(np.mean(scores)) < 0.01  # three standard errors of 0.05 / sqrt(300)


def test_from_labels_numbers_groups_by_their_first_task() -> None:
    grouping = from_labels(labels(7, 2, 7, 0, 2), np.eye(5))
    assert grouping.order == (0, 2, 1, 4, 3)
    assert grouping.module_of_task == (0, 0, 1, 1, 2)
    assert grouping.num_modules == 3
    assert grouping.groups(["a", "b", "c", "d", "e"]) == [["a", "c"], ["b", "e"], ["d"]]
    assert math.isnan(grouping.stability)


def test_group_tasks_reports_what_it_found() -> None:
    vectors, truth = planted([3, 3, 4], num_features=32, noise=0.2, seed=1)
    rng = np.random.default_rng(2)
    evidence = [vectors + 0.01 * rng.normal(size=vectors.shape) for _ in range(4)]
    grouping = group_tasks(evidence, 3, restarts=20, seed=0)
    found = labels(*(grouping.module_of_task[grouping.order.index(k)] for k in range(10)))
    assert adjusted_rand_index(found, truth) == 1.0
    assert grouping.stability == 1.0
    assert grouping.silhouette > 0.8
    np.testing.assert_allclose(np.diag(grouping.similarity), 1.0, rtol=1e-12)  # float64
    same = truth[:, None] == truth[None]
    assert grouping.similarity[same].min() > grouping.similarity[~same].max()


def test_stability_falls_when_the_halves_disagree() -> None:
    first = np.repeat(np.eye(2), 3, axis=0)  # tasks 0-2 and 3-5
    second = np.tile(np.eye(2), (3, 1))  # even and odd tasks
    assert group_tasks([first, second], 2, restarts=5, seed=0).stability < 0.2
    assert math.isnan(group_tasks([first], 2, restarts=5, seed=0).stability)


def test_unit_rows_leaves_zero_alone() -> None:
    assert unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]
