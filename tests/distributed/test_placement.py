"""Which rank gets which tasks."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from mow.engine.placement import place


def sizes(*arguments: object) -> list[int]:
    return [part.stop - part.start for part in place(*arguments)]


def test_by_hand() -> None:
    assert sizes([0] * 5, 2) in ([2, 3], [3, 2])
    assert sorted(sizes([0] * 26, 8)) == [3] * 6 + [4] * 2
    assert sizes([0, 0, 0, 1, 1], 2) == [3, 2]  # no module is cut
    assert sizes([0, 1, 2, 3], 2, [9.0, 1.0, 1.0, 1.0]) == [1, 3]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8).map(sorted), st.data())
def test_no_division_has_a_shorter_longest_rank(modules: list[int], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(modules)))

    def longest(ends: tuple[int, ...]) -> float:
        times = []
        for start, stop in pairwise((0, *ends, len(modules))):
            outside = {*modules[:start], *modules[stop:]}
            times.append(stop - start + 0.25 * len(outside & {*modules[start:stop]}))
        return max(times)

    found = place(modules, size)
    assert [found[0].start, found[-1].stop] == [0, len(modules)]
    assert all(one.stop == other.start and one.stop > one.start for one, other in pairwise(found))
    best = min(longest(ends) for ends in combinations(range(1, len(modules)), size - 1))
    assert longest(tuple(part.stop for part in found[:-1])) <= best + 1e-9
