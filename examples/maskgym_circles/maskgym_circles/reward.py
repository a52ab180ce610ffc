"""A reward term: short answers are tidy."""

from maskgym.rewards import Term, Transition


class Tidiness(Term):
    """1 for an answer without a needless expression, less for each beyond the first."""

    name = "tidiness"
    range = (0.0, 1.0)

    def __call__(self, transition: Transition) -> float:
        """Return the term of one transition."""
        count = len(transition.answer.expressions) if transition.answer else 0
        return 1 / count if count else 0.0
