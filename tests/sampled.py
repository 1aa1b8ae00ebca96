"""
A share of the dearest tests for every run, the rest for the nightly one: the plugin of `make test` and `make nightly` (`-p sampled`).

A test that is listed here holds a whole table: strategies by architectures, drawn cases, fields of a file. `make test` takes one in so
many of its rows, `make nightly` the others; which ones, `SEED` decides. Without the plugin, as where one file is run or a fault is
planted, all rows run. `test_suite.py` sees to it that every test of the list is there.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict

import pytest
from families import SEED

NIGHTLY = 0  # no row of it in `make test`

# One row in so many.
SHARES: dict[str, int] = {
    "bytes/test_bytes.py::test_distributions_are_those_of_the_enumeration_at_every_prefix": 3,
    "bytes/test_bytes_generate.py::test_base_and_reference_alike_give_the_tuned_models_own_texts": 3,
    "bytes/test_bytes_generate.py::test_rows_and_reuse_change_nothing": 3,
    "decoding/test_coupling.py::test_reject_samples_from_the_combination": 2,
    "decoding/test_coupling.py::test_the_rejected_token_s_replacement_matters": NIGHTLY,
    "decoding/test_devices_at_once.py::test_random_cases_give_the_tokens_of_one_device": 4,
    "decoding/test_generate.py::test_alpha_zero_gives_the_base": 4,
    "decoding/test_generate.py::test_assisted_decoding_gives_the_tuned_model": 4,
    "decoding/test_generate.py::test_base_equal_to_reference_gives_the_tuned_model": 4,
    "decoding/test_generation_options.py::test_no_option_of_sampling_is_greedy_in_silence": 2,
    "decoding/test_paged.py::test_every_recipe_is_kept": 2,
    "decoding/test_paged.py::test_members_of_any_shape_give_the_tokens_of_generate": 2,
    "decoding/test_paged_options.py::test_options_are_heeded": 3,
    "decoding/test_paged_options.py::test_what_a_batch_cannot_have_is_refused_by_name_and_place": 4,
    "decoding/test_paged_refused.py::test_requests_that_cannot_be_served_are_refused": 3,
    "decoding/test_pictures.py::test_an_add_on_sees_what_the_call_shows": 2,
    "decoding/test_pictures.py::test_members_see_what_the_call_shows": 2,
    "decoding/test_replayed.py::test_a_step_is_one_graph_that_the_next_call_has_too": 6,
    "decoding/test_replayed.py::test_random_cases": 4,
    "decoding/test_roll_back.py::test_random_cases_give_the_tokens_of_plain_decoding": 4,
    "decoding/test_roll_back.py::test_rejections_in_every_round_against_the_stateless_oracle": 2,
    "decoding/test_ruled.py::test_a_compiled_model_is_the_same": NIGHTLY,
    "decoding/test_ruled.py::test_greedy_in_every_way": 3,
    "decoding/test_skipping.py::test_members_of_every_kind_catch_up": 2,
    "decoding/test_skipping.py::test_the_tokens_are_those_of_all_members": 4,
    "decoding/test_small_combination.py::test_drafters_that_take_turns_give_the_tokens_of_plain_decoding": 2,
    "decoding/test_small_combination.py::test_random_cases_give_the_tokens_of_plain_decoding": 4,
    "decoding/test_small_combination.py::test_what_is_drafted_is_the_recipe_with_the_reference_in_the_place_of_the_base": 2,
    "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding": 10,
    "decoding/test_static_drafts.py::test_a_call_is_compiled_once": 2,
    "decoding/test_static_drafts.py::test_prompts_of_members_own_with_strengths_by_row": 4,
    "decoding/test_static_drafts.py::test_random_cases_give_the_tokens_of_plain_decoding": 3,
    "decoding/test_thinking.py::test_greedy": 2,
    "decoding/test_thinking_compiled.py::test_compiled_steps_follow_phases": NIGHTLY,
    "decoding/test_threads.py::test_a_call_is_as_if_it_were_alone": 4,
    "decoding/test_threads.py::test_a_call_that_begins_in_another_and_ends_after_it_is_as_if_it_were_alone": 3,
    "evaluation/test_evaluation_use.py::test_lm_eval_is_imported_when_it_is_needed": NIGHTLY,
    "files/test_readers.py::test_what_is_read_is_clear_or_refused_clearly": 2,
    "folders/test_saving.py::test_the_folder_brings_it_back": 2,
    "folders/test_written.py::test_any_field_of_a_members_configuration": 4,
    "folders/test_written.py::test_any_field_of_the_configuration": 5,
    "grammar/test_grammar_exact.py::test_every_step_is_the_combination_renormalised": 2,
    "grammar/test_grammar_exact.py::test_samples_are_of_the_renormalised_distribution": 3,
    "grammar/test_grammar_states.py::test_drawn_answers_are_valid": 2,
    "members/test_adapters.py::test_an_adapter_gives_what_full_models_give": 3,
    "members/test_adapters.py::test_families": 5,
    "members/test_adapters.py::test_static_caches_compile_to_full_graphs": 2,
    "members/test_architectures.py::test_a_kind_is_exact_or_refused": 4,
    "members/test_architectures.py::test_a_kind_that_sees_is_exact_or_refused": 4,
    "members/test_caches.py::test_a_window_is_compiled_no_oftener_than_in_a_plain_model": NIGHTLY,
    "members/test_caches.py::test_static_cache_with_a_compiled_full_graph": 3,
    "members/test_joint_static.py::test_random_cases": 3,
    "members/test_recurrent.py::test_the_add_on_is_exact": 2,
    "members/test_recurrent.py::test_the_wrapper_is_exact": 3,
    "members/test_unusual_members.py::test_models_that_are_compiled_in_place": NIGHTLY,
    "members/test_vocabulary.py::test_padding_changes_nothing_and_is_never_generated": 2,
    "members/test_vocabulary.py::test_several_end_tokens_are_the_tuned_member_s": 2,
    "models/test_compositions.py::test_drawn_compositions_are_what_the_oracle_says": 3,
    "models/test_compositions.py::test_the_script_carries_on_and_prints_a_small_case": NIGHTLY,
    "models/test_oracle.py::test_every_step_equals_the_oracle": 3,
    "planning/test_plan.py::test_a_base_on_disk_takes_less_than_planned": NIGHTLY,
    "project/test_rules_evidence.py::test_the_quick_version_runs_and_does_nothing_again": NIGHTLY,
    "project/test_suite.py::test_the_seed_is_every_test_s": NIGHTLY,
    "project/test_through.py::test_the_quick_version_runs_and_does_nothing_again": NIGHTLY,
    "prompts/test_member_pipeline.py::test_each_member_reads_its_own_prompt": 2,
    "prompts/test_pipeline.py::test_chats": 2,
    "prompts/test_pipeline.py::test_strings": 2,
    "prompts/test_prompts.py::test_a_static_cache_compiles": NIGHTLY,
    "prompts/test_prompts.py::test_speculation_with_a_prompt_for_each": 4,
    "prompts/test_prompts.py::test_the_tuned_model_on_its_own_prompt": 4,
    "recipe/test_recipes.py::test_32_rows_of_32_strengths_are_32_single_runs": 5,
    "recipe/test_recipes.py::test_truncation_under_every_way_of_decoding": 2,
    "reliability/test_faults.py::test_a_step_ends_anywhere": 3,
    "reliability/test_faults.py::test_interrupted_at_any_line": 3,
    "reliability/test_faults.py::test_what_a_user_brings_fails": 2,
    "reliability/test_full_disk.py::test_what_is_written_is_there_whole_or_not_at_all": 2,
    "serving/test_serving_refused.py::test_bad_requests_are_told_why_and_the_server_lives_on": 3,
    "training/test_tune_run.py::test_a_run_that_was_stopped_ends_as_one_that_was_not": 3,
    "units/test_units_enumerated.py::test_a_combination_is_the_combination_of_enumerations": 2,
    "units/test_units_enumerated.py::test_texts_and_their_ends_are_those_of_the_enumeration": 3,
    "units/test_units_enumerated.py::test_texts_have_the_probabilities_that_the_member_gives_them": 2,
    "units/test_units_generate.py::test_rows_and_reuse_change_nothing": 2,
}


def held_back(ids: list[str]) -> set[str]:
    """Those of the tests' ids that the nightly run takes."""
    rows = defaultdict(list)
    for name in ids:
        rows[name.split("[")[0].partition("tests/")[2]].append(name)
    back: set[str] = set()
    for test, share in SHARES.items():
        # Drawn, as every n-th row of a grid could be the same column.
        drawn = sorted(rows[test], key=lambda name: random.Random(f"{SEED} {name}").random())
        back.update(drawn[math.ceil(len(drawn) / share) if share else 0 :])
    return back


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is held back, before `-m` chooses by marks."""
    already = [item.nodeid for item in items if not item.get_closest_marker("nightly")]
    back = held_back(already)
    for item in items:
        if item.nodeid in back:
            item.add_marker("nightly")
