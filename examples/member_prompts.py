"""A prompt for each member: the tuned one its chat template, base and reference two examples; and guidance, one model with two prompts."""

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.prompts import member_inputs

base, tuned, reference, tokenizer = tiny.load()
shown, asked = tiny.questions()[:2], tiny.questions()[5]
plain = tiny.load().tokenizer
plain.chat_template = None  # a tokenizer without a template writes plain text
examples = "".join(f"{question.prompt} {question.answer}.\n" for question in shown)

prompts = member_inputs(
    [[{"role": "user", "content": asked.text}]],
    {"base": plain, "tuned": tokenizer, "reference": plain},
    plain=lambda messages: f"{examples}Question: {messages[0]['content']}\nAnswer:",
)
inputs = prompts.pop("base")
model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
ids = model.generate(**inputs, member_inputs=prompts, max_new_tokens=24, do_sample=False)
print(asked.text, tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())

guided = EFTForCausalLM.from_models(base, reference=base, combination=Combination.guide(1.5))
ids = guided.generate(**prompts["tuned"], member_inputs={"reference": inputs}, max_new_tokens=24, do_sample=False)
print(
    guided.combination,
    ":",
    tokenizer.decode(ids[0, prompts["tuned"]["input_ids"].shape[1] :], skip_special_tokens=True).strip(),
)
