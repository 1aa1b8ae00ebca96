"""A small pair with one tokenizer, a large base with another: combined byte by byte."""

from hf_eft import EFTForCausalLM, tiny
from hf_eft.bytes import ByteTokenizer

base, _, _, tokenizer = tiny.load()
tuned, reference, second = tiny.load_second()
model = EFTForCausalLM.from_models(
    base,
    tuned=tuned,
    reference=reference,
    tokenizers={"base": tokenizer, "tuned": second, "reference": second},
    vocabulary="bytes",
)
speaker = ByteTokenizer(second)  # with the chat template of the tuned member

asked = tiny.questions()[12:14]
inputs = speaker([question.prompt for question in asked], return_tensors="pt", padding=True)
print(tokenizer.tokenize(asked[0].prompt))
print(second.tokenize(asked[0].prompt))
ids = model.generate(**inputs, max_new_tokens=80, do_sample=False)
for question, row in zip(asked, ids, strict=True):
    print(question.text, speaker.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True))
for name, member in model.members.items():
    print(f"{name:<10} {member.cost}")
