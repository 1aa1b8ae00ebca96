"""A large base model answers as a small tuned one would, if the small one knew what the large one knows."""

from hf_eft import EFTForCausalLM, tiny

base, tuned, reference, tokenizer = tiny.load()  # or three times AutoModelForCausalLM.from_pretrained(...)
model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)

for question in tiny.questions()[:3]:
    inputs = tokenizer(question.prompt, return_tensors="pt", return_token_type_ids=False)
    length = inputs["input_ids"].shape[1]
    print(f"{question.text}  (the fact: {question.answer})")
    for name, system in (("tuned alone", tuned), ("base alone", base), ("combination", model)):
        ids = system.generate(**inputs, max_new_tokens=24, do_sample=False)
        print(f"  {name:<12}{tokenizer.decode(ids[0, length:], skip_special_tokens=True)}")
