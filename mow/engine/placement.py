"""Division of the tasks among ranks: contiguous ranges of their present order, which is sorted by module."""

from collections.abc import Sequence
from functools import cache

_CUT = 0.25  # cost of a module on several ranks, in tasks: its gradients are summed between these


def place(module_of_task: Sequence[int], size: int, costs: Sequence[float] | None = None) -> tuple[slice, ...]:
    """The tasks of each rank, so that the longest rank is as short as can be; among equals as few modules are cut.

        time of a rank = sum of its tasks' costs + 0.25 x its modules with tasks elsewhere too

    Args: module_of_task: [K] ascending. size: ranks, at most K. costs: [K] of a task's updates and simulators; 1 each.
    """
    num_tasks = len(module_of_task)
    each = [1.0] * num_tasks if costs is None else list(costs)

    def seconds(start: int, stop: int) -> float:
        cut_below = start > 0 and module_of_task[start - 1] == module_of_task[start]
        cut_above = stop < num_tasks and module_of_task[stop - 1] == module_of_task[stop]
        one = module_of_task[start] == module_of_task[stop - 1]
        cuts = (cut_below or cut_above) if one else cut_below + cut_above
        return sum(each[start:stop]) + _CUT * cuts

    @cache
    def best(start: int, ranks: int) -> tuple[float, float, tuple[int, ...]]:
        """(longest rank, sum of squares, ends) of the tasks from `start` on."""
        if ranks == 1:
            time = seconds(start, num_tasks)
            return time, time**2, (num_tasks,)
        found = []
        for stop in range(start + 1, num_tasks - ranks + 2):
            time, (longest, squares, ends) = seconds(start, stop), best(stop, ranks - 1)
            found.append((max(time, longest), time**2 + squares, (stop, *ends)))
        return min(found)

    ends = best(0, size)[2]
    return tuple(map(slice, (0, *ends), ends))
