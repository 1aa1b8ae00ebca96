"""
The short run on the oldest versions (`make rooms`): one test for every room of the package, and a look at whether each was entered.

A room is a file with functions; it was entered when a line inside one of them ran. `conftest.py` marks the tests of the table
with `floor`, and with `-p rooms` a run ends in an error if a room stayed empty. `test_rooms.py` sees to it that the table has
a line for every room.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hf_eft

PACKAGE = Path(hf_eft.__file__).parent

# Of a test with parameters the first set that is named so is run.
TESTS: dict[str, str] = {
    "__init__.py": "models/test_errors.py::test_a_misspelt_option_is_refused",
    "members/adapters/__init__.py": "members/test_adapters.py::test_an_adapter_gives_what_full_models_give",
    "members/adapters/checks.py": "members/test_adapters.py::test_an_adapter_gives_what_full_models_give",
    "members/adapters/given.py": "members/test_adapters.py::test_an_adapter_gives_what_full_models_give",
    "members/adapters/joint.py": "members/test_adapters.py::test_an_adapter_gives_what_full_models_give",
    "members/adapters/joint_static.py": "members/test_one_pass.py::test_one_pass_on_static_caches_is_one_graph",
    "members/adapters/stack.py": "members/test_adapters.py::test_an_adapter_gives_what_full_models_give",
    "members/adapters/views.py": "members/test_adapters.py::test_an_adapter_gives_what_full_models_give",
    "analysis/__init__.py": "analysis/test_analysis.py::test_records_are_sums_over_independent_forwards",
    "analysis/effects.py": "analysis/test_analysis.py::test_who_changed_the_choice",
    "analysis/passage.py": "analysis/test_analysis.py::test_records_are_sums_over_independent_forwards",
    "analysis/records.py": "analysis/test_analysis_texts.py::test_the_table",
    "analysis/token_text.py": "analysis/test_analysis_texts.py::test_texts_of_tokens_are_the_text",
    "programs/answer.py": "programs/test_batch.py::test_lines_of_text",
    "programs/batch.py": "programs/test_batch.py::test_lines_of_text",
    "programs/parts.py": "programs/test_batch_parts.py::test_errors_are_those_of_the_whole",
    "programs/ray_batch.py": "programs/test_ray_batch.py::test_the_parts_together_are_the_file_of_one_process",
    "programs/results_folder.py": "programs/test_ray_batch.py::test_the_parts_together_are_the_file_of_one_process",
    "programs/bench.py": "programs/test_bench.py::test_bench_counts_right",
    "bytes/__init__.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "bytes/alphabet.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/covers.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/lane.py": "units/test_lane.py::test_every_step",
    "spelling/lexicon.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/model.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/prompts.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/reader.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/states.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/sums.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/texts.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "spelling/written.py": "bytes/test_bytes_generate.py::test_greedy_is_that_of_the_enumeration",
    "units/alphabet.py": "units/test_units_generate.py::test_greedy_is_that_of_the_enumeration",
    "units/members.py": "units/test_units_generate.py::test_greedy_is_that_of_the_enumeration",
    "units/model.py": "units/test_units_generate.py::test_greedy_is_that_of_the_enumeration",
    "units/speaker.py": "units/test_units_speaker.py::test_texts_are_written_in_units",
    "bytes/tokens.py": "bytes/test_bytes_tokens.py::test_bytes_of_tokens_make_up_the_text",
    "units/beneath.py": "folders/test_saved_vocabularies.py::test_it_comes_back_and_can_be_saved_again",
    "units/choice.py": "units/test_choice.py::test_what_is_chosen_and_why",
    "units/common.py": "units/test_common_units.py::test_members_agree_on_the_units_of_every_text",
    "units/cutting.py": "units/test_common_units.py::test_members_agree_on_the_units_of_every_text",
    "units/digits.py": "units/test_digits.py::test_members_agree_on_digits_of_any_script",
    "units/spelling.py": "units/test_common_units.py::test_members_agree_on_the_units_of_every_text",
    "units/merges.py": "units/test_common_units.py::test_members_agree_on_the_units_of_every_text",
    "units/shared.py": "units/test_common_units.py::test_members_agree_on_the_units_of_every_text",
    "members/cache.py": "members/test_caches.py::test_caller_made_caches_are_used_in_place",
    "members/siblings.py": "members/test_caches.py::test_caller_made_caches_are_used_in_place",
    "members/call.py": "decoding/test_generate.py::test_base_equal_to_reference_gives_the_tuned_model",
    "folders/gates.py": "folders/test_saved_rules.py::test_what_is_loaded_is_what_was_saved",
    "folders/card.py": "folders/test_card.py::test_the_card_of_a_saved_combination",
    "folders/card_text.py": "folders/test_card.py::test_the_card_of_a_saved_combination",
    "members/checks.py": "models/test_errors.py::test_bad_members_and_recipes",
    "cli/__init__.py": "cli/test_cli.py::test_the_entry_point",
    "cli/app.py": "cli/test_cli.py::test_the_commands_are_there",
    "cli/chat.py": "programs/test_chat.py::test_piped",
    "cli/evaluate.py": "evaluation/test_evaluation_use.py::test_command",
    "cli/generate.py": "programs/test_answers.py::test_standard_input_to_standard_output",
    "cli/look.py": "cli/test_cli_commands.py::test_inspect",
    "cli/many.py": "programs/test_ray_batch.py::test_the_command_answers_as_without_ray",
    "cli/models.py": "cli/test_cli_commands.py::test_several_tuned_members",
    "cli/options.py": "cli/test_cli_commands.py::test_several_tuned_members",
    "cli/publish.py": "cli/test_cli_commands.py::test_card",
    "cli/run.py": "cli/test_tiny_and_cli.py::test_demo",
    "cli/serve.py": "cli/test_serve_by_vllm.py::test_greedy_is_greedy_there_and_the_folders_recipe_holds",
    "recipe/combination.py": "recipe/test_combination.py::test_presets",
    "recipe/coefficients.py": "recipe/test_phase_markers.py::test_coefficients_by_phase",
    "recipe/described.py": "recipe/test_rules.py::test_recipes_come_back_equal",
    "recipe/rules/confidence.py": "recipe/test_rules.py::test_recipes_come_back_equal",
    "recipe/rules/divergence.py": "recipe/test_rules.py::test_a_member_that_is_read_is_a_member",
    "recipe/rules/gate.py": "recipe/test_rules.py::test_a_gate_starts_as_a_constant_and_is_its_weights",
    "recipe/rules/kl.py": "recipe/test_rules.py::test_worked_examples",
    "recipe/rules/known.py": "recipe/test_rules.py::test_recipes_come_back_equal",
    "recipe/rules/measures.py": "recipe/test_rules.py::test_worked_examples",
    "recipe/rules/rule.py": "recipe/test_rules.py::test_recipes_come_back_equal",
    "recipe/phases.py": "recipe/test_phase_markers.py::test_coefficients_by_phase",
    "recipe/truncation.py": "recipe/test_phase_markers.py::test_coefficients_by_phase",
    "decoding/added.py": "decoding/test_thinking.py::test_sampled_rows_are_those_of_their_seeds",
    "decoding/phases.py": "decoding/test_thinking.py::test_sampled_rows_are_those_of_their_seeds",
    "decoding/skipping/call.py": "decoding/test_skipping.py::test_the_report_is_of_what_was_run",
    "decoding/skipping/leads.py": "decoding/test_skipping.py::test_a_truncation_and_a_bound_together",
    "decoding/skipping/options.py": "decoding/test_skipping.py::test_the_report_is_of_what_was_run",
    "decoding/skipping/skipper.py": "decoding/test_skipping.py::test_the_report_is_of_what_was_run",
    "members/unread.py": "decoding/test_skipping.py::test_the_report_is_of_what_was_run",
    "decoding/varying.py": "decoding/test_thinking.py::test_sampled_rows_are_those_of_their_seeds",
    "decoding/speculative/standing.py": "decoding/test_thinking.py::test_sampled_rows_are_those_of_their_seeds",
    "decoding/continuous/standing.py": "decoding/test_thinking.py::test_continuous_batching",
    "recipe/combine.py": "recipe/test_combination.py::test_plain_sum_of_raw_logits",
    "hub/compatibility.py": "members/test_vocabulary.py::test_what_will_be_refused_is_said_beforehand",
    "configuration_eft.py": "folders/test_saving.py::test_the_folder_brings_it_back",
    "decoding/continuous/__init__.py": "decoding/test_paged.py::test_members_of_any_shape_give_the_tokens_of_generate",
    "decoding/continuous/answers.py": "decoding/test_paged.py::test_members_of_any_shape_give_the_tokens_of_generate",
    "decoding/continuous/limits.py": "decoding/test_paged_refused.py::test_other_attentions_are_refused",
    "decoding/continuous/manager.py": "decoding/test_paged.py::test_members_of_any_shape_give_the_tokens_of_generate",
    "decoding/continuous/options.py": "decoding/test_paged.py::test_members_of_any_shape_give_the_tokens_of_generate",
    "decoding/continuous/paged.py": "decoding/test_paged.py::test_members_of_any_shape_give_the_tokens_of_generate",
    "programs/child.py": "cli/test_serve_by_vllm.py::test_greedy_is_greedy_there_and_the_folders_recipe_holds",
    "programs/conversation.py": "programs/test_chat.py::test_a_conversation_reads_what_is_new_and_says_what_it_would_have_said_anyway",
    "hub/custom_generate.py": "hub/test_custom_generate.py::test_it_is_the_wrapper",
    "programs/demo.py": "cli/test_tiny_and_cli.py::test_demo",
    "members/devices.py": "decoding/test_generate.py::test_base_equal_to_reference_gives_the_tuned_model",
    "members/embeds.py": "decoding/test_features.py::test_inputs_embeds_that_are_no_tokens_are_refused",
    "evaluation/__init__.py": "evaluation/test_evaluation_use.py::test_command",
    "evaluation/advice.py": "evaluation/test_evaluation_use.py::test_command",
    "evaluation/custom_data.py": "evaluation/test_evaluation_use.py::test_your_own_data",
    "evaluation/harness.py": "evaluation/test_evaluation_use.py::test_command",
    "evaluation/intervals.py": "evaluation/test_intervals.py::test_gap_recovered",
    "evaluation/report.py": "evaluation/test_evaluation_use.py::test_command",
    "evaluation/resume.py": "evaluation/test_evaluation.py::test_fingerprints_see_weights_recipes_and_schedules",
    "evaluation/scores.py": "evaluation/test_evaluation_use.py::test_command",
    "files/__init__.py": "programs/test_batch.py::test_lines_of_text",
    "folders/folder.py": "folders/test_saving.py::test_the_folder_brings_it_back",
    "folders/gather.py": "hub/test_hub.py::test_members_by_id",
    "folders/loading.py": "folders/test_saving.py::test_the_folder_brings_it_back",
    "folders/options.py": "folders/test_options.py::test_dtypes",
    "members/parts.py": "folders/test_saving.py::test_the_folder_brings_it_back",
    "folders/processing.py": "folders/test_saving_processors.py::test_each_member_s_processor_comes_back",
    "folders/places.py": "folders/test_saving.py::test_the_folder_brings_it_back",
    "folders/recipe.py": "hub/test_hub.py::test_a_recipe_refers_to_commits",
    "files/repositories.py": "folders/test_saving.py::test_the_folder_brings_it_back",
    "folders/saving.py": "folders/test_saving.py::test_the_folder_brings_it_back",
    "folders/upload.py": "hub/test_hub.py::test_pushing_again_leaves_no_member_behind",
    "files/trust.py": "folders/test_saving.py::test_the_folder_brings_it_back",
    "files/written.py": "folders/test_written.py::test_what_is_left_out_is_named_once",
    "decoding/generation.py": "decoding/test_generate.py::test_base_equal_to_reference_gives_the_tuned_model",
    "decoding/processing.py": "prompts/test_templates.py::test_tokenizers_may_be_given_later",
    "decoding/given.py": "programs/test_batch.py::test_lines_of_text",
    "members/halfway.py": "reliability/test_faults_memory.py::test_a_cache_that_was_left_half_way_is_refused",
    "analysis/thumbnails.py": "analysis/test_analysis_pictures.py::test_the_page_shows_pictures_of_bounded_size",
    "analysis/heatmap.py": "analysis/test_heatmap.py::test_the_data_are_the_records",
    "hub/__init__.py": "hub/test_hub.py::test_members_by_id",
    "decoding/inputs.py": "decoding/test_generate.py::test_base_equal_to_reference_gives_the_tuned_model",
    "files/json_lines.py": "evaluation/test_evaluation_use.py::test_your_own_data",
    "decoding/tokens_left.py": "models/test_compositions_found.py::test_a_row_without_any_token_left_is_refused",
    "logits_process.py": "models/test_logits_process.py::test_one_object_serves_any_sequence_of_calls",
    "members/member.py": "models/test_oracle.py::test_every_step_equals_the_oracle",
    "members/named.py": "decoding/test_generate.py::test_base_equal_to_reference_gives_the_tuned_model",
    "members/members.py": "models/test_oracle.py::test_every_step_equals_the_oracle",
    "members/membership.py": "models/test_errors.py::test_bad_members_and_recipes",
    "prompts/messages.py": "programs/test_answers.py::test_standard_input_to_standard_output",
    "members/positions.py": "members/test_sight.py::test_a_step_of_forward_goes_on_where_the_picture_ended",
    "members/auto.py": "members/test_sight.py::test_members_that_see_come_back_from_a_folder",
    "members/sight.py": "members/test_sight.py::test_own_pictures_in_forward",
    "prompts/pictures.py": "members/test_sight.py::test_own_pictures_in_forward",
    "decoding/running.py": "members/test_sight.py::test_a_member_of_text_is_told_a_text_in_its_place_or_refused",
    "members/modalities.py": "decoding/test_generate.py::test_base_equal_to_reference_gives_the_tuned_model",
    "modeling_eft.py": "models/test_oracle.py::test_forward_equals_the_oracle_at_every_position",
    "programs/option_values.py": "programs/test_option_values.py::test_what_has_no_meaning_is_named",
    "programs/moved.py": "programs/test_moved.py::test_other_names_are_not_found",
    "programs/options.py": "programs/test_batch.py::test_lines_of_text",
    "members/padding.py": "models/test_logits_process.py::test_padding_by_mask_by_token_and_by_default",
    "prompts/pipeline.py": "prompts/test_member_pipeline.py::test_each_member_reads_its_own_prompt",
    "planning/__init__.py": "planning/test_plan.py::test_the_best_block",
    "planning/machines.py": "planning/test_plan.py::test_this_machine_and_known_ones",
    "planning/places.py": "planning/test_plan.py::test_a_saved_combination_and_its_members_are_planned_alike",
    "planning/shapes.py": "planning/test_plan.py::test_what_reading_holds_at_its_peak",
    "cli/plan.py": "planning/test_plan.py::test_the_command_says_what_fits",
    "programs/planned.py": "planning/test_plan.py::test_the_command_says_what_fits",
    "playground/__init__.py": "playground/test_playground.py::test_without_gradio_it_says_what_to_install",
    "playground/dials.py": "playground/test_playground.py::test_dials",
    "playground/streaming.py": "playground/test_playground.py::test_an_answer_streams",
    "evaluation/plots.py": "evaluation/test_evaluation_use.py::test_picture_and_its_data",
    "members/prefix.py": "members/test_prefix.py::test_match",
    "prompts/__init__.py": "prompts/test_prompts.py::test_the_tuned_model_on_its_own_prompt",
    "decoding/reader.py": "models/test_oracle.py::test_every_step_equals_the_oracle",
    "members/beside.py": "decoding/test_devices_at_once.py::test_a_step_without_drafts_runs_both_devices",
    "members/quantised.py": "members/test_quantised_refused.py::test_what_would_not_come_back_is_not_saved",
    "members/ragged.py": "decoding/test_static_drafts.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "members/recurrent.py": "members/test_recurrent.py::test_rows_of_padding_one_by_one",
    "members/releases.py": "members/test_caches.py::test_caller_made_caches_are_used_in_place",
    "programs/pictures.py": "serving/test_serving_pictures.py::test_an_answer_is_what_generate_gives",
    "programs/report.py": "members/test_caches.py::test_caller_made_caches_are_used_in_place",
    "members/roll_back.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "serving/__init__.py": "serving/test_serving.py::test_a_completion_is_what_generate_gives",
    "serving/answers.py": "serving/test_serving_answers.py::test_an_answer_says_why_it_ended",
    "serving/app.py": "serving/test_serving.py::test_a_completion_is_what_generate_gives",
    "serving/asked.py": "serving/test_serving.py::test_a_completion_is_what_generate_gives",
    "serving/batched.py": "serving/test_serving_choices.py::test_several_answers_of_a_batch_are_drawn_apart",
    "serving/bodies.py": "serving/test_serving.py::test_a_completion_is_what_generate_gives",
    "serving/chat.py": "serving/test_serving_json_and_tools.py::test_answers_keep_to_a_schema",
    "serving/chats.py": "serving/test_serving_pictures.py::test_an_answer_is_what_generate_gives",
    "serving/images.py": "serving/test_serving_pictures.py::test_an_answer_is_what_generate_gives",
    "serving/completions.py": "serving/test_serving.py::test_a_completion_is_what_generate_gives",
    "serving/dispatch.py": "serving/test_serving.py::test_a_completion_is_what_generate_gives",
    "serving/endpoint.py": "serving/test_serving.py::test_a_completion_is_what_generate_gives",
    "serving/errors.py": "serving/test_serving_requests.py::test_errors_are_json",
    "grammar/calls.py": "grammar/test_grammar_states.py::test_lookup_does_not_spoil_calls",
    "grammar/grammars.py": "grammar/test_grammar_states.py::test_lookup_does_not_spoil_calls",
    "grammar/processor.py": "grammar/test_grammar_states.py::test_lookup_does_not_spoil_calls",
    "grammar/states.py": "grammar/test_grammar_states.py::test_lookup_does_not_spoil_calls",
    "grammar/thinking.py": "grammar/test_grammar_states.py::test_a_thought_cannot_end_the_row",
    "decoding/grammars.py": "grammar/test_grammar_states.py::test_lookup_does_not_spoil_calls",
    "serving/items.py": "serving/test_serving_choices.py::test_responses_tell_what_ended_them",
    "serving/logprobs.py": "serving/test_serving_choices.py::test_logprobs_of_a_completion",
    "serving/penalties.py": "serving/test_serving_answers.py::test_a_frequency_counts_each_time_and_a_presence_once",
    "serving/responses.py": "serving/test_serving_choices.py::test_responses_tell_what_ended_them",
    "serving/tools.py": "serving/test_serving_json_and_tools.py::test_a_call_that_is_required_is_made",
    "serving/vllm.py": "cli/test_serve_by_vllm.py::test_greedy_is_greedy_there_and_the_folders_recipe_holds",
    "recipe/shorthands.py": "members/test_caches.py::test_caller_made_caches_are_used_in_place",
    "decoding/speculative/__init__.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/choice.py": "decoding/test_small_combination.py::test_who_may_draft",
    "decoding/speculative/scoring.py": "decoding/test_small_combination.py::test_who_may_draft",
    "decoding/speculative/small.py": "decoding/test_small_combination.py::test_who_may_draft",
    "decoding/speculative/static.py": "decoding/test_static_drafts.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/ahead.py": "decoding/test_devices_at_once.py::test_the_next_block_is_drafted_while_the_base_looks",
    "decoding/speculative/clock.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/coupling.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/drafting.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/accounts.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/ends.py": "decoding/test_speculative_ends.py::test_criteria_see_the_texts_that_there_are",
    "decoding/speculative/graphs.py": "decoding/test_static_drafts.py::test_what_processors_say_is_not_compiled",
    "decoding/replayed.py": "decoding/test_replayed.py::test_a_step_is_one_graph_that_the_next_call_has_too",
    "decoding/speculative/line.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/recurrent.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/request.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/reading.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/rows.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/schedule.py": "decoding/test_speculative.py::test_random_cases_give_the_tokens_of_plain_decoding",
    "decoding/speculative/watchers.py": "decoding/test_features.py::test_streamer_and_stop_strings",
    "members/states.py": "members/test_architectures.py::test_a_cache_that_is_not_what_was_read_is_refused",
    "evaluation/tasks/embedded.py": "evaluation/test_evaluation.py::test_base_equal_to_reference_is_the_tuned_model_to_the_last_digit",
    "programs/timing.py": "programs/test_bench.py::test_bench",
    "tiny/__init__.py": "cli/test_tiny_and_cli.py::test_facts_come_from_the_base_and_the_style_from_the_tuned_member",
    "members/trial.py": "members/test_architectures.py::test_a_model_is_tried_once_and_one_that_is_told_positions_never",
    "training/bases.py": "training/test_training.py::test_several_bases_are_drawn",
    "training/checkpoints.py": "training/test_trainers.py::test_a_run_that_was_stopped_goes_on_to_the_same_weights",
    "training/heads.py": "training/test_loss.py::test_loss_and_gradients_are_those_of_the_formula",
    "training/in_pieces.py": "training/test_loss.py::test_loss_and_gradients_are_those_of_the_formula",
    "training/kept.py": "training/test_kept_states.py::test_texts_are_read_once_and_a_run_that_was_stopped_finds_them",
    "training/learner.py": "training/test_loss.py::test_loss_and_gradients_are_those_of_the_formula",
    "training/loss.py": "training/test_loss.py::test_loss_and_gradients_are_those_of_the_formula",
    "training/model.py": "training/test_loss.py::test_loss_and_gradients_are_those_of_the_formula",
    "training/modes.py": "training/test_training.py::test_models_that_share_dropout_do_not_share_the_mode",
    "training/packing.py": "training/test_loss.py::test_texts_packed_without_padding",
    "training/pieces.py": "training/test_loss.py::test_loss_and_gradients_are_those_of_the_formula",
    "training/targets.py": "training/test_loss.py::test_loss_and_gradients_are_those_of_the_formula",
    "training/teacher.py": "training/test_trainers.py::test_one_body_and_one_head_are_the_combination",
    "training/trainers.py": "training/test_trainers.py::test_numbers_of_each_token_are_those_that_trl_computes_of_one_model",
    "members/vocabulary.py": "members/test_vocabulary.py::test_padding_changes_nothing_and_is_never_generated",
    "cli/tune.py": "cli/test_cli_tune.py::test_a_run_from_files_to_an_answer",
    "files/learnt.py": "training/test_tune_learnt.py::test_which_base_is_another",
    "folders/card_delta.py": "training/test_tune_learnt.py::test_the_card_says_how_it_learnt",
    "members/learnt.py": "training/test_tune_learnt.py::test_the_card_says_how_it_learnt",
    "programs/tuning.py": "cli/test_cli_tune.py::test_a_run_from_files_to_an_answer",
    "programs/tuning_plot.py": "cli/test_cli_tune.py::test_a_run_from_files_to_an_answer",
    "tiny/texts.py": "training/test_tune_data.py::test_the_embedded_family_learns_of_nobody_who_is_asked_about",
    "training/chats.py": "training/test_tune_data.py::test_answers_alone_are_learnt",
    "training/embedded.py": "training/test_tune_data.py::test_the_embedded_family_learns_of_nobody_who_is_asked_about",
    "training/memory.py": "cli/test_cli_tune.py::test_a_run_from_files_to_an_answer",
    "training/mixture.py": "training/test_tune_data.py::test_what_is_held_out_is_in_no_batch",
    "training/record.py": "cli/test_cli_tune.py::test_a_run_from_files_to_an_answer",
    "training/settings.py": "training/test_tune_data.py::test_settings_that_say_nothing_are_refused",
    "training/tuning.py": "cli/test_cli_tune.py::test_a_run_from_files_to_an_answer",
    "training/watching.py": "cli/test_cli_tune.py::test_a_run_from_files_to_an_answer",
    "training/writing.py": "cli/test_cli_tune.py::test_a_run_from_files_to_an_answer",
}


def rooms(package: Path = PACKAGE) -> dict[str, set[int]]:
    """Each room, and the lines of the bodies of its functions."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        functions = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        # `...` is the body of what a protocol only names.
        written = [node for node in functions if ast.unparse(node.body[-1]) != "..."]
        lines = {line for node in written for line in range(node.body[0].lineno, (node.end_lineno or 0) + 1)}
        if lines:
            found[path.relative_to(package).as_posix()] = lines
    return found


def empty(lines: dict[str, set[int]], package: Path = PACKAGE) -> list[str]:
    """The rooms of which no function ran, by the lines that ran in each file."""
    return [room for room, inside in rooms(package).items() if not inside & lines.get(str(package / room), set())]


def chosen(names: list[str]) -> set[str]:
    """The tests of the table among these names of collected ones."""
    return {
        next((name for name in names if name.removeprefix("tests/").startswith(wanted)), "") for wanted in TESTS.values()
    } - {""}


class Watch:
    """As a plugin: notes what runs, from the start of the session to its end."""

    def __init__(self) -> None:
        import coverage  # only here: every run of the tests reads the table

        self._seen = coverage.Coverage(data_file=None, include=[f"{PACKAGE}/*"])
        self._seen.set_option("run:disable_warnings", ["no-data-collected"])  # it is an error here, and said at the end
        self._seen.start()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._seen.stop()
        data = self._seen.get_data()
        self._missed = empty({file: set(data.lines(file) or ()) for file in data.measured_files()})
        if self._missed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"rooms that were not entered: {', '.join(self._missed) or 'none'}")


def pytest_configure(config: pytest.Config) -> None:
    """Watch, where this file is given as a plugin."""
    config.pluginmanager.register(Watch(), "rooms-watch")
