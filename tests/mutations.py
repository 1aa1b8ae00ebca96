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
        "a large file is read",
        "trust.py",
        "    if size > MAX_JSON:\n",
        "    if False:\n",
        "tests/test_attacks.py -k sizes",
    ),
    Fault(
        "a folder of any model type is read as a combination",
        "trust.py",
        '    if found != MODEL_TYPE:\n        raise ValueError(\n            f"This is',
        '    if False:\n        raise ValueError(\n            f"This is',
        "tests/test_attacks.py -k plain_model",
    ),
    Fault(
        "unknown keys are let through",
        "trust.py",
        "if key not in known and not _same(key, description, defaults)",
        "if False",
        "tests/test_attacks.py -k unknown_keys",
    ),
    Fault(
        "a reference may have more keys",
        "trust.py",
        'set(reference) != {"repo_id", "revision"}',
        'not {"repo_id", "revision"} <= set(reference)',
        "tests/test_attacks.py -k references_that_move",
    ),
    Fault(
        "a reference may be a path",
        "trust.py",
        "    if not is_repo_id(repo_id):\n",
        "    if False:\n",
        "tests/test_attacks.py -k references_that_move",
    ),
    Fault(
        "a reference may move",
        "trust.py",
        "    if not is_commit(revision):\n        raise",
        "    if False:\n        raise",
        "tests/test_attacks.py -k references_that_move",
    ),
    Fault(
        "members keep names of code and of kernels",
        "trust.py",
        "        if key in _LOST:\n",
        "        if False:\n",
        'tests/test_attacks.py -k "code_of_the_folder or kernels"',
    ),
    Fault(
        "members keep them deeper down",
        "trust.py",
        "        clean[key] = _clean_value(name, value, depth + 1)\n",
        "        clean[key] = value\n",
        'tests/test_attacks.py -k "combination_as or code_of_the_folder or kernels"',
    ),
    Fault(
        "a combination may be a member by configuration",
        "trust.py",
        "    if kind in _REFUSED_TYPES:\n",
        "    if False:\n",
        "tests/test_attacks.py -k combination_as",
    ),
    Fault(
        "a combination may be a member by place",
        "hub.py",
        '    if description.get("model_type") == MODEL_TYPE:\n',
        "    if False:\n",
        "tests/test_hub.py -k cannot_be_referred",
    ),
    Fault(
        "symbolic links lead out",
        "trust.py",
        "not (folder / relative).resolve().is_relative_to(root)",
        "False",
        "tests/test_attacks.py -k paths",
    ),
    Fault(
        "drives and shares lead out",
        "trust.py",
        'windows.drive or windows.root or ".." in parts',
        '".." in parts',
        "tests/test_attacks.py -k paths",
    ),
    Fault(
        "the tree of a folder is not looked through",
        "folder.py",
        "    check_tree(folder)\n",
        "    pass\n",
        'tests/test_attacks.py -k "paths or sizes"',
    ),
    Fault(
        "shards are read from anywhere",
        "trust.py",
        "            if not inside(folder, shard).is_file():",
        "            if not (folder / shard).is_file():",
        "tests/test_attacks.py -k paths",
    ),
    Fault(
        "a folder with pickles only is not named",
        "trust.py",
        '    elif not (folder / "model.safetensors").is_file():',
        "    elif False:",
        "tests/test_attacks.py -k pickles",
    ),
    Fault(
        "weights may be read from pickles",
        "loading.py",
        '    if options.setdefault("use_safetensors", True) is not True:',
        "    if False:",
        'tests/test_attacks.py -k "pickles" tests/test_hub.py -k "pickle"',
    ),
    Fault(
        "an adapter beside weights is put on them",
        "trust.py",
        "    if (folder / ADAPTER).exists():\n",
        "    if False:\n",
        "tests/test_attacks.py -k redirect",
    ),
    Fault(
        "code comes from another repository",
        "hub.py",
        "        check_code(name, description)\n",
        "        pass\n",
        "tests/test_attacks.py -k another_repository",
    ),
    Fault(
        "members may be called anything",
        "trust.py",
        'if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or len(name) > 64:',
        "if False:",
        "tests/test_attacks.py -k names_of",
    ),
    Fault(
        "adapters may be on each other",
        "trust.py",
        "if trunk in adapters or trunk in shared or name in shared]",
        "if False]",
        "tests/test_attacks.py -k names_of",
    ),
    Fault(
        "recipes may have other keys",
        "trust.py",
        '    if unknown := (set(recipe) - {"coefficients", "truncation"}) | (set(truncation) - {"rule", "p"}):',
        "    if unknown := set():",
        "tests/test_attacks.py -k recipes",
    ),
    Fault(
        "numbers of a configuration have no limit",
        "trust.py",
        "isinstance(number, int) and abs(number) > limit",
        "False",
        "tests/test_attacks.py -k sizes",
    ),
    Fault(
        "a dtype may be any function of torch",
        "trust.py",
        "isinstance(value, str) and not _DTYPE.fullmatch(value)",
        "False",
        "tests/test_attacks.py -k sizes",
    ),
    Fault(
        "missing weights are random",
        "loading.py",
        '    if missing and getattr(model, "hf_quantizer", None) is None:',
        "    if False:",
        'tests/test_saving.py -k "not_there" tests/test_attacks.py -k "plain_model or not_there"',
    ),
    Fault(
        "a tokenizer's code runs if a file has it",
        "folder.py",
        "load_tokenizer(name, place, local_files_only=True)",
        "load_tokenizer(name, place, local_files_only=True, trust_remote_code=True)",
        "tests/test_attacks.py -k code_of_a_tokenizer",
    ),
    Fault(
        "references are followed unasked",
        "saving.py",
        "            if not allow_references:\n",
        "            if False:\n",
        'tests/test_attacks.py -k "unasked"',
    ),
    Fault(
        "references are not logged",
        "recipe.py",
        '    logger.warning("The recipe',
        '    logger.debug("The recipe',
        "tests/test_hub.py -k logged",
    ),
    Fault(
        "the token is sent for references",
        "recipe.py",
        "        token = tokens.get(repo_id, False) if isinstance(tokens, Mapping) else False\n",
        "        token = tokens.get(repo_id, False) if isinstance(tokens, Mapping) else tokens\n",
        "tests/test_attacks.py -k token",
    ),
    Fault(
        "the stored token is sent for references",
        "recipe.py",
        "if isinstance(tokens, Mapping) else False\n",
        "if isinstance(tokens, Mapping) else None\n",
        "tests/test_attacks.py -k token",
    ),
    Fault(
        "references are fetched where they have moved to",
        "recipe.py",
        "Place.on_hub(repo_id, commit, **",
        "Place.on_hub(repo_id, None, **",
        "tests/test_hub.py -k recipe_refers",
    ),
    Fault(
        "members of a recipe come in the file's order",
        "recipe.py",
        "for name in config.member_names}\n    listed",
        "for name in config.references}\n    listed",
        "tests/test_hub.py -k keep_their_order",
    ),
    Fault(
        "a shared place is loaded twice",
        "hub.py",
        "        if key not in loaded:\n",
        "        if True:\n",
        "tests/test_saving.py -k same_place",
    ),
    Fault(
        "the revision of a member is lost",
        "hub.py",
        "Place.of(where, revisions.get(name), token",
        "Place.of(where, None, token",
        "tests/test_hub.py -k members_by_id",
    ),
    Fault(
        "everything in the folder is published",
        "hub.py",
        '        allow_patterns=[*READ, "README.md"],\n',
        "        allow_patterns=None,\n",
        "tests/test_hub.py -k pushing_again",
    ),
    Fault(
        "members that are gone stay published",
        "hub.py",
        '        delete_patterns="members/*",\n',
        "        delete_patterns=None,\n",
        "tests/test_hub.py -k pushing_again",
    ),
    Fault(
        "saving writes into the members' configurations",
        "folder.py",
        "    shell = copy.copy(model)\n    shell.config = copy.deepcopy(model.config)\n",
        "    shell = model\n",
        "tests/test_saving.py -k leaves_everything",
    ),
    Fault(
        "a member that cannot come back is saved",
        "folder.py",
        "    if model.is_remote_code() or type(model) is not expected:\n",
        "    if False:\n",
        "tests/test_saving.py -k configuration_does_not_make",
    ),
    Fault(
        "another model is overwritten",
        "folder.py",
        "    if found != MODEL_TYPE:\n",
        "    if False:\n",
        "tests/test_saving.py -k not_overwritten",
    ),
    Fault(
        "somebody's folder of that name is replaced",
        "folder.py",
        "        if (folder / MEMBERS).exists():\n            raise ValueError(\n",
        "        if False:\n            raise ValueError(\n",
        "tests/test_saving.py -k else_would_be_lost",
    ),
    Fault(
        "a card that is there is lost",
        "folder.py",
        '        if card is not None and not (folder / "README.md").exists():\n',
        "        if card is not None:\n",
        "tests/test_saving.py -k a_card",
    ),
    Fault(
        "old members stay",
        "folder.py",
        "        (folder / MEMBERS).replace(old)\n",
        "        shutil.copytree(folder / MEMBERS, new / MEMBERS, dirs_exist_ok=True)\n        (folder / MEMBERS).replace(old)\n",
        "tests/test_saving.py -k over_the_folder",
    ),
    Fault(
        "an adapter says what it was put on",
        "folder.py",
        "    config.base_model_name_or_path = config.revision = config.auto_mapping = None\n",
        "    config.revision = None\n",
        "tests/test_saving.py -k nothing_says",
    ),
    Fault(
        "adapters' trunks that are no members are lost",
        "parts.py",
        "                parts.trunks[places[key]] = member.trunk\n",
        "                pass\n",
        "tests/test_saving.py -k objectives",
    ),
    Fault(
        "arguments of a member reach all",
        "saving.py",
        "**common, **own.get(name, {})}",
        "**common, **next(iter(own.values()), {})}",
        "tests/test_saving.py -k dtype_of_all",
    ),
    Fault(
        "tokens that no tokenizer knows come back",
        "folder.py",
        "    model = cls(config, Members(given, recipe.coefficients, known), recipe)\n",
        "    model = cls(config, Members(given, recipe.coefficients), recipe)\n",
        "tests/test_saving.py -k known_tokens",
    ),
    Fault(
        "a folder is read in place of a repository",
        "places.py",
        "        if Path(repo_id).exists():\n",
        "        if False:\n",
        "tests/test_attacks.py -k in_place_of",
    ),
    Fault(
        "weights that are not there are made up before it is said",
        "loading.py",
        "    if described > most:\n",
        "    if False:\n",
        "tests/test_attacks.py -k plain_model",
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
