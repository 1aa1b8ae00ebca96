"""One batch sweeps the strength of the delta: every row has its own coefficients."""

import torch

from hf_eft import EFTForCausalLM, tiny

base, tuned, reference, tokenizer = tiny.load()
model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
alphas = [0.0, 0.5, 0.75, 1.0, 1.5]
prompts = [tiny.questions()[1].prompt] * len(alphas)
inputs = tokenizer(prompts, return_tensors="pt", return_token_type_ids=False)
coefficients = torch.tensor([[1.0, alpha, -alpha] for alpha in alphas])  # columns in the order of model.members
ids = model.generate(**inputs, coefficients=coefficients, max_new_tokens=24, do_sample=False)
for alpha, row in zip(alphas, ids, strict=True):
    print(f"alpha {alpha:<5}{tokenizer.decode(row[inputs['input_ids'].shape[1] :], skip_special_tokens=True)}")
