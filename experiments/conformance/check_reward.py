"""Check a reward: what it gives for transitions of every kind of episode, degenerate ones among them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from copy import deepcopy

import numpy as np

from maskgym.errors import UserError
from maskgym.experiments.conformance import probes
from maskgym.experiments.conformance.findings import Findings, describe
from maskgym.rewards import AnyReward, Reward, Transition, resolve, score
from maskgym.rewards.weighted import BadValue

RULES = {
    "class": "a Reward, a Term, or a function of one transition, with a range of two finite numbers",
    "scores": "a finite value in the range for every transition; a UserError where it does not score a kind of episode",
    "some kind": "at least one kind of episode that it scores",
    "repeat": "the same values each time",
    "alone": "the same value for a transition alone, among others and in any order",
    "untouched": "masks and images that are left unchanged",
    "pickle": "a reward that survives pickling, because workers receive copies",
}


def check(reward: AnyReward, kinds: Sequence[str], found: Findings) -> None:
    """Check a reward on the transitions of some kinds of episodes."""
    made = found.attempt("class", "", lambda: resolve(reward))
    if made is None:
        return
    refusals = []
    for kind in kinds:
        try:
            made(_transitions(kind))
        except BadValue as error:
            found.add("scores", f"{kind}: {describe(error)}")
        except UserError as error:
            refusals.append((kind, describe(error)))
        except Exception as error:  # a fault of the reward, whatever it is
            found.add("scores", f"{kind}: {describe(error)}")
        else:
            with found.guard("scores", kind):
                _check_kind(made, kind, found)
    if len(refusals) == len(kinds):
        found.add("some kind", ": ".join(refusals[0]))
    elif refusals:
        found.note(f"it does not score {', '.join(kind for kind, _ in refusals)}")
    with found.guard("pickle"):
        pickle.loads(pickle.dumps(reward))


def _check_kind(made: Reward, kind: str, found: Findings) -> None:
    """Check values, and that they depend on their own transition only."""

    def totals(played: Sequence[Transition]) -> np.ndarray:
        return score(made, played, range(len(played)))[0]

    played = _transitions(kind)
    first, again = totals(played), totals(played)
    if found.expect(np.array_equal(first, again), "repeat", f"{kind}: two calls differ"):
        alone = np.concatenate([totals([transition]) for transition in played])
        found.expect(np.array_equal(first, alone), "alone", f"{kind}: a transition alone has another value")
        backwards = totals(played[::-1])[::-1]
        found.expect(np.array_equal(first, backwards), "alone", f"{kind}: in another order values differ")
    pairs = zip(map(_arrays, probes.transitions(kind)), map(_arrays, played), strict=True)
    same = all(all(map(np.array_equal, *arrays)) for arrays in pairs)
    found.expect(same, "untouched", f"{kind}: an array was written to")


def _transitions(kind: str) -> tuple[Transition, ...]:
    """Copy the transitions of a kind, which other checks use too."""
    return deepcopy(probes.transitions(kind))


def _arrays(transition: Transition) -> list[np.ndarray]:
    return [*transition.masks, *transition.sample.masks, *transition.sample.images]
