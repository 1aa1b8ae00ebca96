"""The tuned member drafts, the large one checks: the same tokens, in fewer looks of the large model."""

import torch

from hf_eft import EFTForCausalLM, tiny

base, tuned, reference, tokenizer = tiny.load()
model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
prompts = [question.prompt for question in tiny.questions()[:4]]
inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)

plain = model.generate(**inputs, max_new_tokens=24, do_sample=False)
fast = model.generate(**inputs, max_new_tokens=24, do_sample=False, assistant_model=model.tuned)
assert torch.equal(plain, fast)

report = model.speculation
print(f"{report.tokens} tokens of {len(prompts)} rows in {report.rounds} rounds, blocks {report.blocks}")
print("kept, by position in the block:", [round(share, 2) for share in report.acceptance])
