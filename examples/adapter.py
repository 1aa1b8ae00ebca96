"""A LoRA adapter as the tuned member: one copy of the small weights, one pass for both small members."""

import warnings

import torch
from peft import LoraConfig, get_peft_model

from hf_eft import EFTForCausalLM, tiny

warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers for a deprecated attribute
torch.manual_seed(0)
base, _, small, tokenizer = tiny.load()
adapter = get_peft_model(
    small, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
).eval()  # yours is trained
model = EFTForCausalLM.from_models(base, tuned=adapter)  # the reference is the model under the adapter
inputs = tokenizer(tiny.questions()[0].prompt, return_tensors="pt", return_token_type_ids=False)
ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
print(
    f"{base.num_parameters() + adapter.num_parameters():,} parameters in models, {model.num_parameters():,} in the combination"
)
