"""What can go wrong with a run, what must come of it, and the tests that plant it: the table of faults.

| fault | passes if | tests |
| --- | --- | --- |
| none: straight, or stopped and gone on | the same to the byte; prefetch 0, 1, 4; 2 threads | RESUME |
| the same seed twice, another seed | the same, another | SEED |
| kill -9 at random moments of a run | one interval is repeated at most, same end | KILL |
| killed at each write, flush, rename of a save | the old save or the new one, never a mix | COMMIT |
| a file cut short, a flipped bit | named, with the checkpoint to go on from; nothing else is changed | DAMAGE |
| no space, no permission, a broken disk | borne twice, one line at the third; the last checkpoint works | DISK |
| SIGTERM, SIGINT, SIGHUP; two at once | saves, exit 0; the second ends it at once, the last save is whole | SIGNAL |
| its terminal is closed, the reader of its pipe ends | saves, exit 0 | CONSOLE |
| NaN in a loss, a gradient, a reward | the update is left out, named, counted; five in a row end it; \
weights that are not finite are never saved | NUMBERS |
| a simulator killed, raising, hanging, answering nonsense | made anew, its episode cut off, the others as before; \
the fourth failure in a row saves and names task, seed, action | WORKER |
| a simulator that raises anything or answers what cannot be used | made anew, said, counted; with workers and without \
the same | SIMULATOR |
| a simulator that changes settings of its process, or answers oddly | the same steps, the settings as before | RUDE |
| a simulator that does not start | one line with the task, with workers and without; the others are closed | START |
| a simulator without a state | a new episode begins where the run is resumed | STATELESS |
| simulators that are slow together, none of them alone | no time limit is over | SLOW |
| any order of adding, evicting, sampling, saving | as a Python list would have it | REPLAY |
| one thread adds while others sample | no torn frame, no report of a sanitizer | THREADS |
| a packed block damaged in memory or on disk | task and steps are named, no wrong pixel | BLOCK |
| frames that cannot be packed | no larger than raw, and said before memory runs out | NOISE |
| a pickle that brings code | refused, not run | CRAFTED |
| less memory than is needed | refused with numbers and flags; later one line, last checkpoint named | MEMORY |
| half an hour | memory, files and threads do not grow | SOAK |
| no git, git that fails, hangs | trains, commit null, said | GIT |
| a folder or file that cannot be flushed or linked | saved, said once; a disk that fails is still an error | FLUSH |
| a file system without locks; a lock left by a killed process | one process trains; refused with the file to delete \
| LOCK |
| a run that ended before its first step | its folder takes the next run; anything more is never removed | RETRY |
| limits of memory and CPU, nested, of both versions of control groups | the least holds, for replay, checks, threads, \
workers | LIMITS |
| `~`, spaces, quotes, leading dashes in paths | expanded; every printed command can be pasted | PATHS |
| streams closed, full, of a restricted encoding | trains, or one line | STREAMS |
| other flags, tasks, versions when it goes on | those that change nothing are printed, others refused | FLAGS |
| simulators whose tasks have changed since a checkpoint | task and both values in one line, nothing changed | TASKS |
| torn or foreign files, folders and links in their place | one line, exit 2, nothing changed | MALFORMED |
| resumed from an earlier checkpoint | newer ones are moved aside, curves show no point twice | EARLIER |
| a signal while it scores, a report that fails | the trained run stays, exit 0, how to do it later | ENDING |
| a mistake of ours | one line, exit 1, the traceback in failure.txt | MISTAKE |
| a value that parses and cannot be used, flag or variable | one line, exit 2, no folder | VALUES |
| names of tasks that are no file names | a file of its own for each | NAMES |
| a signal while episodes are played for scores or films | stops before the next step, one line, exit 130 | PLAY |
| an episode of any length is filmed | memory does not grow; what is cut is said | FILM |
| any of these, at random moments, one after another | ends in order or goes on, nothing saved is lost | WALK |
"""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "RESUME": {
        "faults/test_resume.py": (
            "test_stopped_anywhere_it_ends_the_same", "test_with_other_stores_and_depths_it_ends_the_same",
            "test_dropout_and_workers_end_the_same", "test_atari_ends_the_same",
            "test_it_goes_on_from_an_earlier_checkpoint_as_often_as_it_is_killed",
            "test_with_two_threads_it_ends_the_same",
        ),
    },
    "SEED": {"faults/test_resume.py": ("test_a_seed_is_the_same_run_and_another_is_another",)},
    "KILL": {
        "faults/test_kill.py": ("test_killed_at_random_moments_it_ends_the_same",),
        "replay/test_segments.py": ("test_killed_at_random_moments",),
    },
    "COMMIT": {
        "faults/test_commit.py": ("test_killed_at_every_single_deed_of_a_save",),
        "replay/test_segments.py": ("test_interrupted_at_every_single_deed",),
        "runs/test_checkpoint.py": ("test_the_file_is_on_the_disk_before_it_takes_the_name",),
    },
    "DAMAGE": {
        "faults/test_resume.py": (
            "test_a_damaged_checkpoint_is_named_and_the_one_before_offered",
            "test_a_damaged_replay_is_named_and_nothing_is_cut_off",
        ),
        "runs/test_checkpoint.py": ("test_every_flipped_bit_is_noticed", "test_a_cut_file_is_named"),
        "replay/test_segments.py": ("test_damage_is_found_and_named", "test_a_damaged_manifest_is_named"),
        "inference/test_export.py": ("test_a_flipped_bit_is_found", "test_half_a_file_is_refused"),
    },
    "DISK": {
        "faults/test_disk.py": (
            "test_two_failures_are_borne_and_change_nothing", "test_a_disk_that_is_really_full",
            "test_the_third_failure_in_a_row_ends_it_and_the_last_checkpoint_still_has_its_replay",
            "test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_no_debris",
        ),
    },
    "SIGNAL": {
        "faults/test_signals.py": (
            "test_a_signal_ends_a_run_in_order", "test_a_second_signal_ends_it_at_once_and_the_last_save_is_whole",
        ),
    },
    "CONSOLE": {
        "faults/test_console.py": (
            "test_a_run_whose_terminal_is_closed_saves", "test_a_run_whose_pipe_nobody_reads_saves",
        ),
        "system/test_console.py": ("test_where_nobody_reads_it_is_as_if_the_terminal_were_closed",),
    },
    "NUMBERS": {
        "faults/test_numbers.py": (
            "test_a_reward_that_is_no_number_costs_an_episode_and_is_said",
            "test_weights_that_blow_up_end_in_one_line_and_are_never_saved",
        ),
        "engine/test_trainer.py": (
            "test_a_single_bad_update_is_left_out_and_the_run_goes_on",
            "test_weights_that_are_broken_stop_the_run_with_a_diagnosis",
        ),
    },
    "WORKER": {
        "envs/test_vector_workers.py": (
            "test_a_killed_worker_is_named", "test_an_error_names_the_task_and_carries_the_traceback",
            "test_a_hung_task_is_named_and_its_worker_ended",
        ),
        "envs/test_restarts.py": (
            "test_a_step_that_was_lost_is_truncated_and_a_new_episode_begins", "test_nonsense_is_a_failure",
            "test_a_dead_or_stopped_worker_is_replaced_and_the_others_do_not_notice",
            "test_after_the_last_restart_it_ends_with_the_traceback",
        ),
        "engine/test_env_failures.py": (
            "test_a_worker_that_is_killed_costs_an_episode_of_its_tasks",
            "test_a_simulator_that_fails_for_good_stops_the_run_which_can_go_on",
        ),
    },
    "SIMULATOR": {
        "faults/test_simulators.py": (
            "test_whatever_a_step_does_it_is_made_anew_said_and_counted", "test_the_reasons_are_words_that_help",
            "test_a_simulator_that_ends_its_process_is_made_anew",
            "test_a_ctrl_c_of_the_user_is_none_of_the_simulators_failures",
            "test_close_that_raises_is_logged_and_nothing_else",
            "test_a_run_of_the_worst_of_them_is_the_same_with_workers_and_without",
            "test_it_is_resumed_scored_filmed_exported_and_loaded",
        ),
    },
    "RUDE": {
        "faults/test_simulators.py": (
            "test_odd_answers_and_rude_simulators_change_nothing",
            "test_rude_simulators_leave_the_process_as_it_was",
        ),
        "envs/test_registry.py": ("test_importing_the_suites_changes_nothing_in_the_process",),
    },
    "START": {
        "faults/test_simulators.py": (
            "test_what_does_not_start_is_one_line_with_workers_and_without",
            "test_those_that_were_made_before_are_closed", "test_a_worker_that_dies_at_the_start_is_one_line",
            "test_before_a_folder_exists",
        ),
    },
    "STATELESS": {
        "envs/test_vector_resume.py": ("test_a_simulator_that_cannot_go_on_opens_a_new_episode",),
        "envs/test_final_frames.py": ("test_a_simulator_without_a_state_loses_nothing_at_a_final_frame",),
    },
    "SLOW": {"faults/test_simulators.py": ("test_the_time_limit_is_for_each_call_of_each_simulator",)},
    "REPLAY": {"replay/test_replay_machine.py": ()},
    "THREADS": {"replay/test_threads.py": ("test_one_thread_adds_while_four_sample", "test_a_sanitizer_finds_nothing")},
    "BLOCK": {
        "replay/test_packed.py": ("test_a_damaged_block_is_an_error_that_names_task_and_steps",),
        "replay/test_spill.py": ("test_a_flipped_bit_and_a_cut_on_the_disk_are_named",),
    },
    "NOISE": {
        "replay/test_packed.py": ("test_still_backgrounds_are_packed_and_noise_costs_no_more_than_raw",),
        "replay/test_store_choice.py": ("test_frames_that_cannot_be_packed_are_said_once_when_they_will_not_fit",),
    },
    "CRAFTED": {
        "faults/test_crafted.py": (
            "test_no_command_runs_what_a_checkpoint_brings", "test_nor_does_load", "test_the_plant_works",
            "test_no_other_file_of_a_run_is_unpickled",
        ),
    },
    "MEMORY": {
        "faults/test_memory.py": (
            "test_a_run_under_a_cap_is_refused_with_numbers_and_flags", "test_running_out_later_is_one_line",
        ),
    },
    "SOAK": {"faults/test_soak.py": ("test_nothing_grows",)},
    "GIT": {
        "runs/test_provenance.py": (
            "test_a_git_that_cannot_tell", "test_a_git_that_may_not_be_run",
            "test_a_run_in_a_checkout_without_git_trains",
        ),
    },
    "FLUSH": {
        "system/test_durable.py": (
            "test_a_folder_that_is_not_flushed_is_said_once_and_all_is_saved", "test_files_that_are_not_flushed",
            "test_a_disk_that_fails_is_still_an_error", "test_a_file_system_without_links",
        ),
    },
    "LOCK": {
        "runs/test_folder.py": (
            "test_without_locks_a_file_takes_their_place",
            "test_what_a_killed_process_has_left_is_refused",
        ),
    },
    "RETRY": {
        "runs/test_folder.py": (
            "test_a_run_that_ended_before_its_first_step_makes_way", "test_anything_more_does_not",
        ),
    },
    "LIMITS": {
        "system/test_machine.py": (
            "test_a_nested_group_of_version_2_is_limited_at_any_level", "test_version_1",
            "test_a_container_that_sees_the_host_s_names",
        ),
        "system/test_threads.py": ("test_under_a_quota_there_are_fewer_and_it_is_said",),
    },
    "PATHS": {
        "system/test_shell.py": (
            "test_a_shell_reads_a_command_as_it_was_meant", "test_every_path_of_every_command_is_expanded",
            "test_commands_that_a_run_prints_go_on_with_it",
        ),
    },
    "STREAMS": {
        "faults/test_console.py": (
            "test_a_run_whose_output_cannot_be_written_trains", "test_a_run_in_a_restricted_encoding_trains",
        ),
        "system/test_console.py": (
            "test_commands_and_their_streams", "test_a_file_never_gets_the_number_of_a_closed_stream",
        ),
    },
    "FLAGS": {
        "faults/test_resume.py": (
            "test_what_cannot_go_on_is_one_line", "test_an_edited_config_is_noticed",
            "test_what_may_change_is_said", "test_other_versions_are_said_and_kept",
        ),
        "runs/test_checkpoint.py": ("test_another_format_is_named",),
    },
    "TASKS": {
        "faults/test_changed_tasks.py": (
            "test_another_number_of_actions", "test_so_do_exported_weights", "test_every_other_property",
        ),
    },
    "MALFORMED": {
        "faults/test_malformed.py": (
            "test_the_config", "test_a_checkpoint", "test_no_entry_of_a_checkpoint_is_taken_on_trust",
            "test_exported_weights", "test_what_an_export_describes", "test_what_a_report_shows",
            "test_the_rest_of_a_run_that_goes_on", "test_the_run_itself",
        ),
    },
    "EARLIER": {
        "faults/test_resume.py": (
            "test_it_goes_on_from_an_earlier_checkpoint_and_the_later_one_is_moved_aside",
            "test_a_checkpoint_that_was_moved_aside_can_be_used", "test_its_curves_show_no_point_twice",
        ),
    },
    "ENDING": {
        "faults/test_endings.py": (
            "test_a_signal_while_it_scores", "test_a_report_that_fails_leaves_a_run_that_is_done",
        ),
    },
    "MISTAKE": {
        "faults/test_endings.py": (
            "test_what_the_user_cannot_mend_leaves_its_traceback",
            "test_without_a_folder_the_traceback_is_in_a_temporary_file",
        ),
    },
    "VALUES": {
        "test_values.py": (
            "test_a_value_is_refused_in_one_line_or_the_run_can_start", "test_the_ends_of_the_ranges_train",
        ),
        "test_user_errors.py": (
            "test_what_is_typed_wrong_is_answered", "test_a_field_out_of_range_is_answered",
            "test_a_backend_that_this_device_lacks_is_answered",
        ),
        "test_build.py": ("test_a_variable_that_cannot_be_used_is_one_line",),
    },
    "NAMES": {
        "system/test_file_names.py": ("test_any_name_is_one_part_of_a_path",),
        "evaluate/test_evaluate.py": ("test_a_task_with_a_slash_in_its_name_is_filmed",),
        "evaluate/test_ablate.py": ("test_runs_of_tasks_with_slashes_in_their_names_are_found_again",),
    },
    "PLAY": {
        "evaluate/test_evaluate.py": ("test_a_signal_stops_the_play_before_the_next_step",),
        "evaluate/test_film.py": ("test_a_signal_stops_the_play",),
    },
    "FILM": {
        "evaluate/test_video.py": (
            "test_a_long_episode_is_cut",
        ),
    },
    "WALK": {"faults/test_random_walk.py": ("test_a_walk_of_random_faults_loses_nothing",)},
}  # fmt: skip


@pytest.mark.parametrize("fault", TABLE)
def test_every_fault_is_planted_somewhere(fault: str) -> None:
    """Files and tests may be renamed, and this table must follow."""
    for file, names in TABLE[fault].items():
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not set(names) - there, file


def test_the_table_that_is_read_is_the_one_that_is_tested() -> None:
    assert __doc__ is not None
    assert re.findall(r"\| ([A-Z]+) \|$", __doc__, re.MULTILINE) == list(TABLE)
