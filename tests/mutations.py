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
        "evaluation: the restricted share of Tango's interval is another",
        "intervals.py",
        "b = (2 * n - won + lost) * d - won - lost",
        "b = (2 * n - won + lost) * d - won + lost",
        "tests/test_intervals.py -k paired_difference_of_shares",
    ),
    Fault(
        "evaluation: the bootstrap is not paired",
        "intervals.py",
        "paired=True,",
        "paired=False,",
        "tests/test_intervals.py -k bootstrap_is_paired",
    ),
    Fault(
        "evaluation: weights do not count",
        "intervals.py",
        "scores.sum(axis) / weights.sum(axis)",
        "scores.mean(axis)",
        "tests/test_intervals.py -k aggregations_are",
    ),
    Fault(
        "evaluation: the gap is taken from the system itself",
        "intervals.py",
        "(a - b) / (c - b)",
        "(a - b) / (c - a)",
        "tests/test_intervals.py -k gap_recovered",
    ),
    Fault(
        "evaluation: a gap that chance makes is recovered",
        "intervals.py",
        "    if not gap.excludes_zero:",
        "    if gap.value == 0 and gap.items < 0:",
        "tests/test_intervals.py -k gap_recovered",
    ),
    Fault(
        "evaluation: the warning takes no notice of the direction",
        "scores.py",
        "return difference.high < 0 if higher else difference.low > 0",
        "return difference.high < 0",
        "tests/test_intervals.py -k direction",
    ),
    Fault(
        "evaluation: another function called mean makes up the score",
        "harness.py",
        "return items if same else None",
        "return items",
        "tests/test_intervals.py -k make_up_the_value",
    ),
    Fault(
        "evaluation: log-probs in the weights' type",
        "harness.py",
        'softmax_dtype="float32"',
        "softmax_dtype=None",
        "tests/test_evaluation.py -k in_bfloat16",
    ),
    Fault(
        "evaluation: the longest context of the longest system",
        "harness.py",
        "    return min(lengths)",
        "    return max(lengths)",
        "tests/test_evaluation.py -k same_length",
    ),
    Fault(
        "evaluation: results are not kept as they come",
        "evaluation.py",
        "            store.keep(name, system, result)\n",
        "",
        "tests/test_evaluation.py -k killed",
    ),
    Fault(
        "evaluation: results of another recipe are taken",
        "resume.py",
        "return _digest([members, _recipe(model.combination)])",
        "return _digest([members])",
        "tests/test_evaluation.py -k fingerprints",
    ),
    Fault(
        "evaluation: the tokenizer is given a padding token",
        "harness.py",
        "tokenizer=copy.deepcopy(tokenizer),  #",
        "tokenizer=tokenizer,  #",
        "tests/test_evaluation.py -k left_as_they_are",
    ),
    Fault(
        "evaluation: the space around a reply counts",
        "custom_data.py",
        "replies[0].strip()",
        "replies[0]",
        "tests/test_evaluation_use.py -k space_around",
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
