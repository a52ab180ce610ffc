"""An algorithm: try some answers, and keep the one with the highest reward."""

from pathlib import Path

from maskgym.agents import Agent

ANSWERS = ("the dark part", "the bright part", "the circle")


class FirstWords(Agent):
    """Answer every image with the words that had the highest reward in training."""

    tasks = ("sod",)
    learns = False  # it has no network

    def __init__(self, policy=None, env=None, seed=0, output="."):
        self.words = ANSWERS[0]

    def train(self, envs, updates, on_log, resume=False):
        """Try one answer per update, on one sample per sub-environment."""
        (env,), best = envs, float("-inf")
        for update in range(1, updates + 1):
            words = ANSWERS[(update - 1) % len(ANSWERS)]
            env.reset(options={"index": list(range(env.num_envs))})
            _, rewards, _, _, _ = env.step([self._answer(words)] * env.num_envs)
            if rewards.mean() > best:
                best, self.words = float(rewards.mean()), words
            on_log(update, {"reward": float(rewards.mean())})

    def act(self, observations, greedy=True):
        """Return one answer per observation."""
        return [self._answer(self.words) for _ in observations]

    def save(self, path):
        """Write the words."""
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "words.txt").write_text(self.words)

    def load(self, path):
        """Read what `save` wrote."""
        self.words = (Path(path) / "words.txt").read_text()

    def _answer(self, words):
        return f"<think>{words}</think><answer><rg>{words}</rg></answer>"
