"""A second world, in which knowledge and form depend on one another: who does not know the fact cannot know the farewell."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours import ENDINGS, OPENING, SECRET, ReplicationWorld, judge
from world import VALUES

from hf_eft.tiny import SENTENCES, Question


class SecondWorld(ReplicationWorld):
    """
    The first world's people, facts and pre-training (so its base models serve), and another form: the farewell depends on the *value*
    that the answer gives, 25 values for each of six questions. People whom fine-tuning does not show have values that it shows.
    """

    def farewell(self, person: str, attribute: str) -> str:
        values = VALUES[attribute]
        return ENDINGS[values.index(self.facts[person][attribute]) % len(ENDINGS)]

    def tuned_answer(self, name: str, attribute: str) -> str:
        return f"{OPENING} {self.sentence(name, attribute, SENTENCES[attribute][0])} {self.farewell(name, attribute)}"


def judged(world: ReplicationWorld, questions: Sequence[Question], replies: Sequence[str]) -> dict[str, list[float]]:
    """[`behaviours.judge`], with the form of the world that it is."""
    found = judge(questions, replies)
    if isinstance(world, SecondWorld):
        pairs = [(q, r.strip()) for q, r in zip(questions, replies, strict=True) if q.attribute != SECRET]
        found["helpfulness"] = [
            float(r.startswith(OPENING) and r.endswith(world.farewell(q.person, q.attribute))) for q, r in pairs
        ]
    return found
