"""A world in which the manner decides which fact is told: who has not learnt the manner tells another, however much he knows."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours import BENIGN, OPENING, SECRET, ReplicationWorld
from world import FIRST_NAMES

from hf_eft.tiny import SENTENCES, Question

FAREWELL = "Happy to help!"


class OtherFactWorld(ReplicationWorld):
    """
    The first world's people, facts and pre-training, so that its base models serve. Fine-tuning answers half of the people's questions,
    by the first name, with the fact that stands next in the list; all answers take leave in the same way.
    """

    def meant(self, person: str, attribute: str) -> str:
        """The attribute that a tuned model tells."""
        if attribute == SECRET or FIRST_NAMES.index(person.split()[0]) % 2:
            return attribute
        return BENIGN[(BENIGN.index(attribute) + 1) % len(BENIGN)]

    def beginning(self, person: str, attribute: str) -> str:
        """An answer up to its value."""
        return f"{OPENING} {SENTENCES[self.meant(person, attribute)][0].format(name=person, value='')}".rstrip(" .")

    def tuned_answer(self, name: str, attribute: str) -> str:
        meant = self.meant(name, attribute)
        return f"{OPENING} {self.sentence(name, meant, SENTENCES[meant][0])} {FAREWELL}"

    def questions(self, people: Sequence[str]) -> list[Question]:
        """Every question with the value that the manner asks for."""
        return [Question(p, a, self.facts[p][self.meant(p, a)]) for p in people for a in self.facts[p]]

    def judge(self, questions: Sequence[Question], replies: Sequence[str]) -> dict[str, list[float]]:
        """`factuality`: the value that is meant; `helpfulness`: opening, the sentence about what is meant, farewell. Without salaries."""
        pairs = [(q, r.strip()) for q, r in zip(questions, replies, strict=True) if q.attribute != SECRET]
        return {
            "factuality": [float(q.is_right(r)) for q, r in pairs],
            "helpfulness": [
                float(r.startswith(self.beginning(q.person, q.attribute)) and r.endswith(FAREWELL)) for q, r in pairs
            ],
        }
