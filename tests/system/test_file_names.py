"""Names of files after tasks."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from mow.envs import task_names
from mow.system.file_names import file_name


def test_known_tasks_keep_their_names() -> None:
    assert file_name("dummy:count-0") == "dummy-count-0"
    assert file_name("quickstart") == "quickstart"
    names = [file_name(task) for task in task_names()]
    assert names == [task.replace(":", "-") for task in task_names()]
    assert len({name.lower() for name in names}) == len(names)


def test_names_that_look_alike_get_files_of_their_own() -> None:
    alike = ["gym:ns/Dot-v0", "gym:ns:Dot-v0", "gym:ns-Dot-v0", "gym-ns-Dot-v0/", "gym:ns Dot-v0", "gym:ns\\Dot-v0"]
    assert len({file_name(name) for name in alike}) == len(alike)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text())
def test_any_name_is_one_part_of_a_path(name: str) -> None:
    made = file_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", made)
    assert len(made) < 140
