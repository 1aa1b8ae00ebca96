"""Learning through the combination: a member is trained with the others in the loop, which stay as they are."""

from .model import EFTForTraining
from .teacher import EFTTeacher

__all__ = ["EFTForTraining", "EFTTeacher"]
