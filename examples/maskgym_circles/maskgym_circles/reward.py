"""A reward term: short answers are tidy."""

from maskgym.rewards import Term, Transition


class Tidiness(Term):
    """Compute 1 / n for an answer with n expressions. Range [0, 1]."""

    name = "tidiness"
    range = (0.0, 1.0)

    def __call__(self, transition: Transition) -> float:
        """Return the term of one transition."""
        count = len(transition.answer.expressions) if transition.answer else 0
        return 1 / count if count else 0.0
