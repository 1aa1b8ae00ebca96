"""
Plant faults, one at a time, in a copy of the package, and see the tests fail.

    python tests/mutations.py                  # every fault
    python tests/mutations.py reorder crop     # those whose name contains one of the words

A fault that no test notices is a hole in the tests: the script then exits with 1.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    code: str  # found exactly once in the file
    planted: str
    tests: str  # what is run: files and a `-k` expression


FAULTS = [
    Fault(
        "a member's cache is not reordered",
        "cache.py",
        "            cache.reorder_cache(beam_idx)",
        "            pass",
        "tests/test_generate.py -k gpt2-beam",
    ),
    Fault(
        "a member's cache is not cropped",
        "cache.py",
        "            cache.crop(tokens_to_remove)",
        "            pass",
        "tests/test_generate.py -k assisted_decoding_gives",
    ),
    Fault(
        "the mask is not passed to the small members",
        "members.py",
        '"attention_mask": attention_mask.get(name) if per_member else attention_mask,',
        '"attention_mask": attention_mask.get(name) if per_member else (attention_mask if is_main else None),',
        "tests/test_oracle.py -k left",
    ),
    Fault(
        "position ids are not passed",
        "members.py",
        '                "position_ids": position_ids,',
        '                "position_ids": None,',
        "tests/test_oracle.py -k left",
    ),
    Fault(
        "tuned and reference are swapped",
        "combination.py",
        "return cls({BASE: 1.0, TUNED: alpha, REFERENCE: _minus(alpha)}, truncation)",
        "return cls({BASE: 1.0, TUNED: _minus(alpha), REFERENCE: alpha}, truncation)",
        "tests/test_generate.py -k gpt2-greedy",
    ),
    Fault(
        "the coefficient is ignored",
        "combination.py",
        "        value = next((value for known, value in self._pairs if known == name), 0.0)",
        "        value = next((float((value > 0) - (value < 0)) for known, value in self._pairs if known == name), 0.0)",
        "tests/test_oracle.py -k alpha",
    ),
    Fault(
        "the processor does not normalise",
        "logits_process.py",
        "return combined.log_softmax(-1).to(scores.dtype)",
        "return combined.to(scores.dtype)",
        "tests/test_generate.py -k beam",
    ),
    Fault(
        "the processor's state is not keyed on content",
        "reader.py",
        "rows, keep = prefix.match(self._keys, asked)",
        "rows, keep = None, min(self._keys.shape[1], asked.shape[1])",
        "tests/test_logits_process.py tests/test_generate.py -k 'sequence_of_calls or beam'",
    ),
    Fault(
        "a small member's static cache is one too short",
        "cache.py",
        "max_cache_len=max([*lengths, max_cache_len or 0])",
        "max_cache_len=max([*lengths, max_cache_len or 0]) - 1",
        "tests/test_generate.py -k static",
    ),
    Fault(
        "rows that keep fewer drafted tokens are not moved",
        "cache.py",
        "                    _shift_rows(layer, shift)",
        "                    pass",
        "tests/test_speculative.py -k random_cases",
    ),
    Fault(
        "the drafting member's cache keeps a rejected token",
        "speculative.py",
        "drafter_drop = drop if read_all else drop - 1",
        "drafter_drop = drop if read_all else max(0, drop - 2)",
        "tests/test_speculative.py -k random_cases",
    ),
    Fault(
        "verification has noise of its own",
        "coupling.py",
        "return torch.Generator().manual_seed(",
        "return torch.Generator().manual_seed(torch.seed() + ",
        "tests/test_speculative.py -k 'noise or random_cases'",
    ),
    Fault(
        "a warper acts on the base before the delta is added, in the processor",
        "logits_process.py",
        "        logits = {BASE: scores.unsqueeze(1),",
        "        scores = scores.masked_fill(scores < scores.topk(5)[0][..., -1:], -torch.inf)\n"
        "        logits = {BASE: scores.unsqueeze(1),",
        "tests/test_generate.py -k top_k",
    ),
    Fault(
        "a warper acts on the base before the delta is added, in the wrapper",
        "modeling_eft.py",
        "        logits = combine(members.logits(outputs, attention_mask), self.combination, coefficients)",
        "        by_name = dict(members.logits(outputs, attention_mask))\n"
        "        by_name['base'] = by_name['base'] / 0.7\n"
        "        logits = combine(by_name, self.combination, coefficients)",
        "tests/test_generate.py -k sample",
    ),
    Fault(
        "a member's rows get another member's adapter",
        "stack.py",
        "out.narrow(0, i * rows, rows).add_",
        "out.narrow(0, 0, rows).add_",
        "tests/test_adapters.py -k several",
    ),
    Fault(
        "the scaling of an adapter is forgotten",
        "stack.py",
        ", alpha=scaling)",
        ")",
        "tests/test_adapters.py -k full_models",
    ),
    Fault(
        "stale common states are gone on from",
        "joint.py",
        "if all(mine is given for",
        "if all(True for",
        "tests/test_adapters.py -k 'strategies or reorders'",
    ),
    Fault(
        "the mask is not repeated for every member in a pass",
        "stack.py",
        "attention_mask=self._tiled(attention_mask),",
        "attention_mask=None,",
        "tests/test_adapters.py -k families",
    ),
    Fault(
        "adapters are left on in the model under them",
        "views.py",
        "        replace(view, path, original)",
        "        pass",
        "tests/test_adapters.py -k 'full_models and ia3'",
    ),
    Fault(
        "a view shares its containers with the user's model",
        "views.py",
        "[module._parameters, module._buffers] if any(module.children()) else [module]",
        "[module] if module is not model else [module._parameters]",
        "tests/test_adapters.py -k user_s_is_changed",
    ),
    Fault(
        "flags that PEFT sets are not set back",
        "views.py",
        "            parameter.requires_grad_(needed)",
        "            pass",
        "tests/test_adapters.py -k 'user_s_is_changed or folders'",
    ),
    Fault(
        "an adapter's folder may hold weights of the model",
        "adapters.py",
        'if not ours or set(parts) & {"base_layer", "original_module"}:',
        "if False:",
        "tests/test_adapters.py -k folders_that_are_refused",
    ),
    Fault(
        "beta weights the tuned member",
        "combination.py",
        "return cls({BASE: beta, TUNED: 1.0, REFERENCE: _minus(beta)}, truncation)",
        "return cls({BASE: 1.0, TUNED: beta, REFERENCE: _minus(beta)}, truncation)",
        "tests/test_recipes.py -k formula",
    ),
    Fault(
        "the recipe of proxy-tuning ignores its strength",
        "combination.py",
        "        return cls.emulate(alpha=alpha)\n",
        "        return cls.emulate()\n",
        "tests/test_recipes.py -k formula",
    ),
    Fault(
        "the recipe of DExperts filters by the expert",
        "combination.py",
        'truncation=Truncation("base", p))',
        'truncation=Truncation("drop", p))',
        "tests/test_recipes.py -k formula",
    ),
    Fault(
        "steering forgets the reference of a behaviour",
        "combination.py",
        "            taken[reference] = taken.get(reference, 0.0) + w\n",
        "            taken[reference] = w\n",
        "tests/test_recipes.py -k formula",
    ),
    Fault(
        "steering ignores references of their own",
        "combination.py",
        "(references or {}).get(name, REFERENCE)",
        "REFERENCE",
        "tests/test_recipes.py -k formula",
    ),
    Fault(
        "DeRa is the other way round",
        "combination.py",
        "return cls({TUNED: w, REFERENCE: _mapped(w, lambda value: 1.0 - value)})",
        "return cls({REFERENCE: w, TUNED: _mapped(w, lambda value: 1.0 - value)})",
        "tests/test_recipes.py -k formula",
    ),
    Fault(
        "contrastive decoding forgets to amplify",
        "combination.py",
        "return cls({BASE: 1.0 + strength,",
        "return cls({BASE: 1.0,",
        "tests/test_recipes.py -k formula",
    ),
    Fault(
        "guidance does not get away from the reference",
        "combination.py",
        "return cls({BASE: scale, REFERENCE: _mapped(scale, lambda value: 1.0 - value)})",
        "return cls({BASE: scale, REFERENCE: 0.0})",
        "tests/test_recipes.py tests/test_prompts.py -k 'formula or guidance'",
    ),
    Fault(
        "MOD drops a weight",
        "combination.py",
        "        return cls(dict(weights))\n",
        "        return cls(dict.fromkeys(weights, 1 / len(weights)))\n",
        "tests/test_recipes.py -k formula",
    ),
    Fault(
        "a schedule is a token late",
        "generation.py",
        "(max(0, generated - back) for back",
        "(max(0, generated - back - 1) for back",
        "tests/test_recipes.py -k schedules_under",
    ),
    Fault(
        "speculation reads a schedule at the end of the row",
        "speculative.py",
        "for i in range(start, stop)), strict=True) for n in row]",
        "for _ in range(start, stop)), strict=True) for n in row]",
        "tests/test_recipes.py -k schedules_under",
    ),
    Fault(
        "the mask of a prompt of its own is forgotten",
        "generation.py",
        '"attention_mask": mask, "position_ids"',
        '"attention_mask": torch.ones_like(mask), "position_ids"',
        "tests/test_prompts.py -k own_prompt",
    ),
    Fault(
        "a member's own prompt is read behind the common positions",
        "generation.py",
        "positions_of(mask)[:, read:],",
        "positions_of(mask)[:, read:] + 1,",
        "tests/test_prompts.py -k own_prompt",
    ),
    Fault(
        "all members stand in one line while drafting",
        "speculative.py",
        "            if self.lines[name] is not common\n",
        "            if False\n",
        "tests/test_prompts.py -k speculation",
    ),
    Fault(
        "ids that some member has no row for may be generated",
        "vocabulary.py",
        "value=-torch.inf)",
        "value=50.0)",
        "tests/test_vocabulary.py",
    ),
    Fault(
        "ids that a tokenizer does not know may be generated",
        "vocabulary.py",
        "            logits.masked_fill_(~self.known.to(logits.device), -torch.inf)\n",
        "            pass\n",
        "tests/test_vocabulary.py -k no_tokenizer_knows",
    ),
    Fault(
        "one rule leaves no token",
        "combine.py",
        "    inside[..., 0] = True\n",
        "    inside[..., 0] = mass_before[..., 0] < p - 1e-5\n",
        "tests/test_recipes.py -k truncation",
    ),
    Fault(
        "the class is not registered for pipelines",
        "modeling_eft.py",
        "AutoModelForCausalLM.register(EFTConfig, EFTForCausalLM, exist_ok=True)",
        "",
        "tests/test_pipeline.py -k strings",
    ),
    Fault(
        "prompts of members are not passed on by the pipeline",
        "pipeline.py",
        'return super()._forward(model_inputs, **({"member_inputs": own} if own else {}), **generate_kwargs)',
        "return super()._forward(model_inputs, **generate_kwargs)",
        "tests/test_pipeline.py -k each_member",
    ),
    Fault(
        "something follows an answer that is to be continued",
        "pipeline.py",
        "return text[: text.rindex(content) + len(content)]",
        "return text",
        "tests/test_pipeline.py -k continued",
    ),
    Fault(
        "the first member reads the pipeline's tokenizer though it has its own",
        "pipeline.py",
        "known = {main: self.tokenizer, **self.model.tokenizers}",
        "known = {**self.model.tokenizers, main: self.tokenizer}",
        "tests/test_pipeline.py -k first_members_own",
    ),
    Fault(
        "prompts of chats are cut in silence",
        "pipeline.py",
        "if cut := [name for name in _CUTS if rest.get(name)]:",
        "if cut := []:",
        "tests/test_pipeline.py -k refuses",
    ),
    Fault(
        "a pipeline of prompts without tokenizers",
        "pipeline.py",
        'if not getattr(self.model, "tokenizers", None):',
        "if False:",
        "tests/test_pipeline.py -k refuses",
    ),
    Fault(
        "templates that differ are told of at every call",
        "generation.py",
        "if member_inputs is None and not self._warned_of_templates:",
        "if member_inputs is None:",
        "tests/test_pipeline.py -k told_of_once",
    ),
    Fault(
        "who said one prompt for all is warned of templates",
        "generation.py",
        "if member_inputs is None and not self._warned_of_templates:",
        "if not member_inputs and not self._warned_of_templates:",
        "tests/test_pipeline.py -k nobody",
    ),
    Fault(
        "templates that agree are warned of",
        "prompts.py",
        "differ = any(template != next(iter(templates.values())) for template in templates.values())",
        "differ = len(templates) > 1",
        "tests/test_pipeline.py -k nobody",
    ),
    Fault(
        "prompts that are no chats are warned of",
        "prompts.py",
        "return bool(ending) and tokenizer.decode(ids[-_ENDING:]).rstrip().endswith(ending)",
        "return bool(ending)",
        "tests/test_pipeline.py -k nobody",
    ),
    Fault(
        "the generation config is the main member's",
        "modeling_eft.py",
        "source = models[tuned_names[0]] if len(tuned_names) == 1 else models[members.main]",
        "source = models[members.main]",
        "tests/test_vocabulary.py -k several_end_tokens",
    ),
    Fault(
        "tokenizers given later are not compared",
        "generation.py",
        "self._members.vocabulary = Vocabulary(self._members.vocabulary.widths, tokenizers)",
        "self._members.vocabulary.tokenizers = dict(tokenizers)",
        "tests/test_pipeline.py -k given_later",
    ),
    Fault(
        "a folder's name is taken for a repository",
        "card.py",
        'return is_repo_id(place) and (is_commit(commit) or ("/" in place and not Path(place).exists()))',
        "return is_repo_id(place)",
        "tests/test_card.py -k no_path",
    ),
    Fault(
        "any source is written into a card",
        "card.py",
        "    place, commit = (source, None) if isinstance(source, str) else source\n    check_repository(name, place, commit)",
        "    place, commit = (source, None) if isinstance(source, str) else source",
        "tests/test_card.py -k hostile_places",
    ),
    Fault(
        "a card's repository is written unchecked",
        "card.py",
        '        check_repository("combination", repo_id)',
        "        pass",
        "tests/test_card.py -k hostile_places",
    ),
    Fault(
        "a recipe's member is written unchecked",
        "card.py",
        '        check_repository(name, where, commit or "")',
        "        pass",
        "tests/test_card.py -k hostile",
    ),
    Fault(
        "a recipe's commit may be missing",
        "card.py",
        'check_repository(name, where, commit or "")',
        "check_repository(name, where, commit or None)",
        "tests/test_card.py -k hostile_names",
    ),
    Fault(
        "a snippet's repositories are written unchecked",
        "card.py",
        "            check_repository(name, place, given.get(name))",
        "            pass",
        "tests/test_card.py -k hostile",
    ),
    Fault(
        "any name of a member gets into a card",
        "card.py",
        'if not name.isidentifier() or name.startswith("_"):',
        "if False:",
        "tests/test_card.py -k hostile_names",
    ),
    Fault(
        "whatever a folder calls its licence is believed",
        "card.py",
        "return stated if isinstance(stated, str) and _LICENCE.fullmatch(stated) else None",
        "return stated",
        "tests/test_card.py -k licence_of_a_folder",
    ),
    Fault(
        "the first member's licence is that of all",
        "card.py",
        "if first is not None and set(stated) == {first}:",
        "if first is not None:",
        "tests/test_card.py -k licences_of_all",
    ),
    Fault(
        "a formula breaks out of its block",
        "card_text.py",
        'if not text.isprintable() or "`" in text:',
        "if False:",
        "tests/test_card.py -k breaks_out",
    ),
    Fault(
        "negative weights are not told of",
        "card_text.py",
        "return callable(value) or min(value if isinstance(value, (list, tuple)) else [value]) < 0",
        "return False",
        "tests/test_card.py -k saved_combination",
    ),
    Fault(
        "a revision that can move is pinned",
        "repositories.py",
        "return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None",
        "return isinstance(revision, str)",
        "tests/test_card.py -k hostile_names",
    ),
    Fault(
        "a recipe of code follows repositories without a commit",
        "custom_generate.py",
        "if not is_repo_id(where) or not is_commit(commit):",
        "if not is_repo_id(where):",
        "tests/test_custom_generate.py -k places",
    ),
    Fault(
        "an adapter's file chooses the model under it",
        "custom_generate.py",
        'if (Path(folder) / "adapter_config.json").is_file() and not (Path(folder) / "config.json").is_file():',
        "if False:",
        "tests/test_custom_generate.py -k adapter",
    ),
    Fault(
        "small models are loaded at every call",
        "custom_generate.py",
        "    if key not in kept:",
        "    if True:",
        "tests/test_custom_generate.py -k loaded_once",
    ),
    Fault(
        "a recipe is written over another",
        "custom_generate.py",
        "if there := [str(path) for path in files if path.exists()]:",
        "if there := []:",
        "tests/test_custom_generate.py -k what_is_written",
    ),
    Fault(
        "the strength of a recipe is not passed on",
        "custom_generate.py",
        '        kwargs["alpha"] = ALPHA',
        "        pass",
        "tests/test_custom_generate.py -k greedy",
    ),
    Fault(
        "the add-on tells of templates that were not asked about",
        "logits_process.py",
        "if self.member_inputs is None and self._tokenizers:",
        "if self._tokenizers:",
        "tests/test_pipeline.py -k add_on_tells",
    ),
    Fault(
        "the add-on tells of templates at every step",
        "logits_process.py",
        "            self._looked_at_templates = True\n",
        "",
        "tests/test_pipeline.py -k add_on_tells",
    ),
    Fault(
        "an adapter is shown as the model under it",
        "card.py",
        "is_adapter = name in model._members.adapted and name not in (BASE, REFERENCE)",
        "is_adapter = False",
        "tests/test_card.py -k adapter",
        "the reward is that of the wrong member",
        "analysis.py",
        "name: [tuned - before for tuned, before in",
        "name: [tuned + before for tuned, before in",
        "tests/test_analysis.py -k sums_over",
    ),
    Fault(
        "the rewards of several tuned members are not weighted",
        "analysis.py",
        "[w * delta for w, delta in",
        "[delta for w, delta in",
        "tests/test_analysis.py -k two_likelihoods",
    ),
    Fault(
        "a divergence forgets the mass it is weighted with",
        "effects.py",
        "torch.where(mass > 0, mass * (p - q), 0.0)",
        "torch.where(mass > 0, q.exp() * (p - q), 0.0)",
        "tests/test_analysis.py -k divergences",
    ),
    Fault(
        "what the combination rules out has a divergence of NaN",
        "effects.py",
        "torch.where(mass > 0, mass * (p - q), 0.0)",
        "(mass * (p - q))",
        "tests/test_analysis.py -k ruled_out",
    ),
    Fault(
        "total variation is not halved",
        "effects.py",
        "(0.5 * (p - q).abs().sum(-1))",
        "((p - q).abs().sum(-1))",
        "tests/test_analysis.py -k divergences",
    ),
    Fault(
        "the member that changed a choice is told without its coefficient",
        "effects.py",
        "torch.where(weights == 0, 0.0, weights * margins)",
        "torch.where(weights == 0, 0.0, margins)",
        "tests/test_analysis.py -k who_changed",
    ),
    Fault(
        "the second piece of a long text is read one token off",
        "passage.py",
        "else after[start - 1 : stop - 1]",
        "else after[start:stop]",
        "tests/test_analysis.py -k sums_over",
    ),
    Fault(
        "a schedule is analysed as its first value",
        "analysis.py",
        "range(count if model.combination.scheduled else 1)",
        "range(1)",
        "tests/test_analysis.py -k sums_over",
    ),
    Fault(
        "infinity reaches JSON",
        "records.py",
        "    return None if isinstance(value, float) and not math.isfinite(value) else value",
        "    return value",
        "tests/test_analysis.py -k ruled_out",
    ),
    Fault(
        "characters of several tokens are cut into pieces",
        "token_text.py",
        "if now.endswith(_UNFINISHED) and end - start < _LONGEST and end < len(ids):",
        "if False:",
        "tests/test_analysis.py -k texts_of_tokens",
    ),
    Fault(
        "a token's text may steer the terminal",
        "report.py",
        "stripped if stripped.isprintable() and stripped else",
        "stripped if stripped else",
        "tests/test_analysis.py -k terminal",
    ),
    Fault(
        "a text may close the data of the page",
        "heatmap.py",
        """    return text.replace("<", "\\\\u003c").replace(">", "\\\\u003e").replace("&", "\\\\u0026")""",
        "    return text",
        "tests/test_heatmap.py -k markup",
    ),
    Fault(
        "the title is not escaped",
        "heatmap.py",
        "title=html.escape(shown)",
        "title=shown",
        "tests/test_heatmap.py -k markup",
    ),
    Fault(
        "texts become markup in the page",
        "heatmap.js",
        "else if (line) parent.append(line);",
        "else if (line) parent.innerHTML += line;",
        "tests/test_heatmap.py -k hostile",
    ),
    Fault(
        "marks of direction act on the page",
        "heatmap.js",
        "\\u2028-\\u202e",
        "\\u2028-\\u2029",
        "tests/test_heatmap.py -k hostile",
    ),
    Fault(
        "the page may run any script",
        "heatmap.py",
        "script-src {_hash(script)};",
        "script-src 'unsafe-inline';",
        "tests/test_heatmap.py -k policy",
    ),
    Fault(
        "the page may load anything",
        "heatmap.py",
        "default-src 'none'; style-src",
        "default-src *; style-src",
        "tests/test_heatmap.py -k policy",
    ),
    Fault(
        "the colours are those of another quantity",
        "heatmap.js",
        "const values = (view) => view.from.values[quantity.key] || [];",
        "const values = (view) => view.from.values[data.quantities[0].key] || [];",
        "tests/test_heatmap.py -k details",
    ),
    Fault(
        "a long text is looked at as a whole",
        "passage.py",
        "step = max(1, min(_TOKENS, _CELLS // members.vocabulary.size))",
        "step = len(after)",
        "tests/test_analysis.py -k pieces_bound",
    ),
    Fault(
        "the sliders say nothing",
        "playground.py",
        'own = {"coefficients": coefficients} if name == _COMBINED else {}',
        "own = {}",
        "tests/test_playground.py -k the_page",
    ),
    Fault(
        "the button stops the page, not the generation",
        "streaming.py",
        "            self._stopped.told.set()\n",
        "            pass\n",
        "tests/test_playground.py -k stop",
    ),
    Fault(
        "the heat-map of the playground is not escaped",
        "playground.py",
        "_FRAME.format(page=html.escape(page([found])))",
        "_FRAME.format(page=page([found]))",
        "tests/test_playground.py -k hostile",
    ),
    Fault(
        "the playground loads fonts from elsewhere",
        "playground.py",
        "theme=gr.themes.Default(**_FONTS)",
        "theme=gr.themes.Default()",
        "tests/test_playground.py -k errors_are_shown",
    ),
    Fault(
        "amplification is turned as strength",
        "dials.py",
        "lambda b: Combination.emulate(beta=b)",
        "lambda b: Combination.emulate(alpha=b)",
        "tests/test_playground.py -k dials",
        "paged: layers side by side overlap",
        "paged.py",
        "i % side_by_side * sizes[name]",
        "0 * i",
        "tests/test_paged.py -k 'any_shape and gpt2'",
    ),
    Fault(
        "paged: rows are as wide as the main member's",
        "paged.py",
        "self.row = max(sizes.values())",
        "self.row = sizes[main]",
        "tests/test_paged.py -k 'any_shape and gpt2'",
    ),
    Fault(
        "paged: a window is one token too wide",
        "paged.py",
        ">= config.sliding_window",
        ">= config.sliding_window + 1",
        "tests/test_paged.py -k 'any_shape and mistral'",
    ),
    Fault(
        "paged: a window is counted over all sequences",
        "paged.py",
        "place = attended - starts.long()[sequence]",
        "place = attended",
        "tests/test_paged.py -k 'any_shape and gemma3'",
    ),
    Fault(
        "paged: states of other tokens are not read",
        "paged.py",
        "states.index_select(0, read) if read.numel() else rows",
        "states.index_select(0, write)",
        "tests/test_paged.py -k 'any_shape and llama'",
    ),
    Fault(
        "paged: coefficients of a request are left out",
        "paged.py",
        "default if given is None else given for given",
        "default for given",
        "tests/test_paged.py -k own_coefficients",
    ),
    Fault(
        "paged: rows without a request come first",
        "paged.py",
        "[*known, *[default] * (count - len(known))]",
        "[*[default] * (count - len(known)), *known]",
        "tests/test_paged.py -k 'coefficients or prefixes'",
    ),
    Fault(
        "paged: the logits of all members are not in the memory plan",
        "paged.py",
        "* (len(configs) + 1)",
        "* 1",
        "tests/test_paged.py -k memory_plan",
    ),
    Fault(
        "paged: layers that do not page are not noticed",
        "paged.py",
        "if len(self.updated) != len(self.states):",
        "if False:",
        "tests/test_paged.py -k does_not_page",
    ),
    Fault(
        "paged: states of another shape are not noticed",
        "paged.py",
        "rows.shape[1:] != states.shape[1:] or rows.dtype != states.dtype",
        "False",
        "tests/test_paged.py -k another_shape",
    ),
    Fault(
        "paged: any attention is taken",
        "batching_limits.py",
        "if attention not in _ATTENTION:",
        "if False:",
        "tests/test_paged.py -k other_attentions",
    ),
    Fault(
        "paged: members without the interface are taken",
        "batching_limits.py",
        "if not model._supports_attention_backend:",
        "if False:",
        "tests/test_paged.py -k whose_states",
    ),
    Fault(
        "paged: recurrent members are taken",
        "batching_limits.py",
        "or not kinds <= {FULL, SLIDING}",
        "",
        "tests/test_paged.py -k whose_states",
    ),
    Fault(
        "paged: dropout is left on",
        "batching_limits.py",
        "if model.training:",
        "if False:",
        "tests/test_paged.py -k training",
    ),
    Fault(
        "paged: any device is taken",
        "batching_limits.py",
        "if others := {str(parameter.device) for parameter in model.parameters()} - {str(device)}:",
        "if others := set():",
        "tests/test_paged.py -k other_devices",
    ),
    Fault(
        "paged: schedules are taken",
        "batching_limits.py",
        "if model.combination.scheduled:",
        "if False:",
        "tests/test_paged.py -k schedules",
    ),
    Fault(
        "paged: beams are taken",
        "batching_limits.py",
        "(generation_config.num_beams or 1) > 1",
        "False",
        "tests/test_paged.py -k ways_of",
    ),
    Fault(
        "paged: stop strings are left out",
        "batching_limits.py",
        "if generation_config.stop_strings:",
        "if False:",
        "tests/test_paged.py -k ways_of",
    ),
    Fault(
        "paged: processors are left out",
        "batching_limits.py",
        'if not getattr(processor, "supports_continuous_batching", None):',
        "if False:",
        "tests/test_paged.py -k ways_of",
    ),
    Fault(
        "paged: what is for one model is taken",
        "batching_limits.py",
        "for name, value in wants.items() if value]",
        "for name, value in wants.items() if not name]",
        "tests/test_paged.py -k one_model",
    ),
    Fault(
        "paged: padding is read",
        "batching_limits.py",
        "if mask is not None and not bool(mask.all()):",
        "if False:",
        "tests/test_paged.py -k left_out",
    ),
    Fault(
        "paged: positions are left out",
        "batching_limits.py",
        '"position_ids", ',
        "",
        "tests/test_paged.py -k left_out",
    ),
    Fault(
        "paged: requests may be too long",
        "continuous.py",
        "if len(input_ids) + new_tokens > limit:",
        "if False:",
        "tests/test_paged.py -k cannot_be_served",
    ),
    Fault(
        "paged: unknown ids are taken",
        "continuous.py",
        "if min(input_ids) < 0 or max(input_ids) >= known:",
        "if False:",
        "tests/test_paged.py -k cannot_be_served",
    ),
    Fault(
        "paged: what ended the thread is not raised",
        "continuous.py",
        "        if error is not None:\n            raise error",
        "        del error",
        "tests/test_paged.py -k no_numbers",
    ),
    Fault(
        "serving: coefficients are left out",
        "dispatch.py",
        'inputs["coefficients"] = asked.coefficients.to(model.device)',
        "pass",
        "tests/test_serving.py -k own_alpha",
    ),
    Fault(
        "serving: coefficients are left out of a batch",
        "dispatch.py",
        'options["coefficients"] = asked.coefficients[0].tolist()',
        "pass",
        "tests/test_serving.py -k own_alpha",
    ),
    Fault(
        "serving: a seed is left out",
        "dispatch.py",
        "        torch.manual_seed(seed)\n",
        "",
        "tests/test_serving.py -k a_seed_is",
    ),
    Fault(
        "serving: what follows a seed is foreseeable",
        "dispatch.py",
        "with torch.random.fork_rng(sorted(device.index for device in devices)):",
        "if devices is not None:",
        "tests/test_serving.py -k a_seed_is",
    ),
    Fault(
        "serving: token types are read",
        "dispatch.py",
        'for key in ("input_ids", "attention_mask") if key in inputs',
        "for key in inputs",
        "tests/test_serving.py -k token_types",
    ),
    Fault(
        "serving: greedy requests of a batch sample",
        "dispatch.py",
        '"top_k": 1, "top_p": 1.0}',
        '"top_k": 99, "top_p": 1.0}',
        "tests/test_serving.py -k own_way",
    ),
    Fault(
        "serving: a seed of a batch is left out",
        "dispatch.py",
        "if asked.seed is not None and config.do_sample:",
        "if False:",
        "tests/test_serving.py -k batch_cannot_do",
    ),
    Fault(
        "serving: a stream's errors are not escaped",
        "dispatch.py",
        "json.dumps(str(error))[1:-1]",
        "str(error)",
        "tests/test_serving.py -k while_generating",
    ),
    Fault(
        "serving: the first of several parameters wins",
        "endpoints.py",
        "if len(given) > 1:",
        "if False:",
        "tests/test_serving.py -k bad_requests",
    ),
    Fault(
        "serving: infinite numbers are taken",
        "endpoints.py",
        "strict=True, allow_inf_nan=False",
        "strict=True",
        "tests/test_serving.py -k numbers_that",
    ),
    Fault(
        "serving: strings are taken for numbers",
        "endpoints.py",
        "strict=True, allow_inf_nan=False",
        "allow_inf_nan=False",
        "tests/test_serving.py -k bad_requests",
    ),
    Fault(
        "serving: members that are not there are left out",
        "endpoints.py",
        "    recipe.check_names(names)\n",
        "",
        "tests/test_serving.py -k bad_requests",
    ),
    Fault(
        "serving: a temperature does not sample",
        "endpoints.py",
        'config.do_sample or bool(body.get("temperature"))',
        "config.do_sample",
        "tests/test_serving.py -k 'a_seed_is or own_way'",
    ),
    Fault(
        "serving: other models can be loaded",
        "endpoints.py",
        "not in _NOT_SERVED",
        "is not None",
        "tests/test_serving.py -k no_other",
    ),
    Fault(
        "serving: any key will do",
        "endpoints.py",
        "not hmac.compare_digest(given, expected)",
        "not given",
        "tests/test_serving.py -k key_is_asked",
    ),
    Fault(
        "serving: an open address is not warned of",
        "serving.py",
        "if api_key is None and not _is_local(host):",
        "if False:",
        "tests/test_serving.py -k open_address",
    ),
]


def survives(fault: Fault) -> str | None:
    """What pytest said if the tests passed with the fault planted, else `None`."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("hf_eft", "tests"):
            shutil.copytree(ROOT / part, Path(folder) / part)
        shutil.copy(ROOT / "pyproject.toml", folder)
        path = Path(folder) / "hf_eft" / fault.file
        text = path.read_text()
        if text.count(fault.code) != 1:
            raise SystemExit(
                f"{fault.name}: the code to change is there {text.count(fault.code)} times in {fault.file}, expected once."
            )
        path.write_text(text.replace(fault.code, fault.planted))
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {fault.tests}"
        # `python -m` puts the working directory first: the copy wins over an installed package.
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    if done.returncode == 1:
        return None
    return done.stdout[-2000:] + done.stderr[-2000:]


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    survivors = 0
    for fault in chosen:
        output = survives(fault)
        print(f"{'caught  ' if output is None else 'SURVIVED'}  {fault.name}", flush=True)
        if output is not None:
            survivors += 1
            print(output)
    print(f"{len(chosen) - survivors} of {len(chosen)} faults caught")
    return int(survivors > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
