"""Check a policy: the members that agents of its kind use, and the gradient of its log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from maskgym.experiments.conformance import probes
from maskgym.experiments.conformance.findings import Findings
from maskgym.experiments.evaluation.rollout import first_rows
from maskgym.policies import Policy
from maskgym.policies.no_policy import NoPolicy

MEMBERS = {  # by kind of action
    "text": ("generate", "sample", "log_probabilities", "save", "load"),
    "clicks": ("network", "trunk", "actor", "critic"),
    "masks": ("forward", "loss", "trainable_parameters", "trained_state", "load_trained_state", "save", "load"),
}
RULES = {
    "tasks": "tasks, a tuple of names of tasks",
    "members": "the members that agents use; " + "; ".join(f"{kind}: {', '.join(MEMBERS[kind])}" for kind in MEMBERS),
    "answers": "one legal action per observation, the same each time where it is greedy",
    "gradient": "finite log-probabilities of actions, at most 0, with a gradient",
    "loss": "logits (B, 1, S, S), and a loss with a gradient",
}
TASKS = tuple(probes.KINDS)


def check(policy: Policy, kinds: Sequence[str], found: Findings) -> None:
    """Check a policy on its tasks, or on those of them that are given."""
    tasks = getattr(policy, "tasks", None)
    known = isinstance(tasks, tuple) and bool(tasks) and set(tasks) <= set(TASKS)
    if not found.expect(known, "tasks", f"tasks={tasks!r}"):
        return
    if isinstance(policy, NoPolicy):
        return
    drives = {"text": _check_text, "clicks": _check_clicks, "masks": _check_masks}
    done = set()
    for task in tasks or ():
        if task not in kinds:
            continue
        kind = probes.KINDS[task].acts
        if kind in done:
            continue
        done.add(kind)
        missing = [name for name in MEMBERS[kind] if not callable(getattr(policy, name, None))]
        if found.expect(not missing, "members", f"no {', '.join(missing)}, which agents of {kind} use"):
            with found.guard("answers"):
                drives[kind](policy, probes.make_env(task), found)


def _check_text(policy: Any, env: probes.SampleVectorEnv, found: Findings) -> None:
    rows = first_rows(env.reset(seed=0)[0], 2)
    answers = [found.attempt("answers", "generate", partial(policy.generate, rows, max_new_tokens=8)) for _ in range(2)]
    first = answers[0]
    if first is None:
        return
    found.expect(len(first) == 2 and all(isinstance(text, str) for text in first), "answers", f"generate: {first!r}")
    found.expect(first == answers[1], "answers", "generate at temperature 0 gave two results")
    drawn = policy.sample(rows, max_new_tokens=8)
    texts = list(drawn[0])
    found.expect(len(texts) == 2 and all(isinstance(text, str) for text in texts), "answers", f"sample: {texts!r}")
    with found.guard("gradient", "log_probabilities"):
        values, mask = policy.log_probabilities(rows, ["<answer>", "<think>a disc</think>"])
        _check_gradient(values[mask], policy.model.parameters(), found)


def _check_clicks(policy: Any, env: probes.SampleVectorEnv, found: Findings) -> None:
    observation_space = env.single_observation_space
    assert isinstance(observation_space, spaces.Dict)
    network = policy.network(observation_space, env.single_action_space)
    rows = first_rows(env.reset(seed=0)[0], env.num_envs)
    drawn = network.sample(rows)
    legal = len(drawn) == env.num_envs and all(action in env.single_action_space for action in np.asarray(drawn))
    found.expect(legal, "answers", f"sample: {drawn!r}")
    greedy = [np.asarray(network.sample(rows, greedy=True)) for _ in range(2)]
    found.expect(np.array_equal(greedy[0], greedy[1]), "answers", "sample with greedy=True gave two results")
    with found.guard("gradient", "log_probabilities"):
        _check_gradient(network.log_probabilities(rows, drawn), network.parameters(), found)


def _check_masks(policy: Any, env: probes.SampleVectorEnv, found: Findings) -> None:
    from maskgym.agents.masks.acting import to_pixels

    observations, _ = env.reset(seed=0)
    pixels, needs = to_pixels(list(observations["image"]), torch.device("cpu")), list(observations["need"])
    with torch.no_grad():
        logits = [policy(pixels, needs) for _ in range(2)]
    shape = tuple(logits[0].shape)
    found.expect(shape == (len(pixels), 1, probes.SIDE, probes.SIDE), "loss", f"logits {shape}")
    found.expect(torch.equal(*logits), "answers", "two calls differ")
    loss, _ = policy.loss(pixels, needs, torch.zeros_like(logits[0]))
    found.expect(loss.ndim == 0 and bool(loss.isfinite()), "loss", f"loss {loss}")
    _check_moves(loss, policy.trainable_parameters(), "loss", found)


def _check_gradient(values: torch.Tensor, parameters: Any, found: Findings) -> None:
    low, high = values.detach().min().item(), values.detach().max().item()
    fine = bool(values.isfinite().all()) and high <= 1e-6
    found.expect(fine, "gradient", f"log-probabilities from {low:g} to {high:g}")
    _check_moves(values.sum(), parameters, "gradient", found)


def _check_moves(value: torch.Tensor, parameters: Any, rule: str, found: Findings) -> None:
    if not found.expect(value.requires_grad, rule, "a value without a gradient"):
        return
    learned = [one for one in parameters if one.requires_grad]
    gradients = torch.autograd.grad(value, learned, allow_unused=True)
    moved = any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)
    found.expect(moved, rule, "a gradient of zero for every parameter")
