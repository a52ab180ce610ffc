"""REINFORCE for text, with the mean reward of the batch as baseline."""

import torch

from maskgym.agents.common.checkpoints import CheckpointedAgent


class Reinforce(CheckpointedAgent):
    """Raise the log-probability of answers that earn more than the others of their batch."""

    tasks = ("sod", "sis", "cosod", "refer")
    checkpoint_name = "reinforce.pt"

    def __init__(self, policy, env=None, seed=0, output=".", learning_rate=1e-4, max_new_tokens=96, save_every=10):
        super().__init__(seed, output, save_every)
        self.policy, self.max_new_tokens = policy, max_new_tokens
        learned = [weight for weight in policy.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(learned, lr=learning_rate)

    def train(self, envs, updates, on_log, resume=False):
        """Sample one answer per sub-environment, then take one gradient step."""
        for update in range(self.restore() if resume else 0, updates):
            env, number = envs[update % len(envs)], 100_000 * self.seed + update
            torch.manual_seed(number)
            observations, _ = env.reset(seed=number)
            rows = [{name: value[i] for name, value in observations.items()} for i in range(env.num_envs)]
            drawn = self.policy.sample(rows, self.max_new_tokens)
            _, rewards, _, _, _ = env.step(drawn.answers)
            advantages = torch.as_tensor(rewards - rewards.mean(), dtype=torch.float32, device=self.policy.device)
            log_probabilities, mask = self.policy.log_probabilities(rows, drawn.tokens)  # (B, T), with gradient
            loss = -(advantages[:, None] * log_probabilities).sum() / mask.sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            cost = {"generated_tokens": float(mask.sum()), "reward_calls": float(env.num_envs)}
            self.finish_update(update + 1, {"reward": float(rewards.mean()), "loss": loss.item(), **cost}, on_log)

    def act(self, observations, greedy=True):
        """Generate one answer per observation."""
        return self.policy.generate(observations, self.max_new_tokens, 0.0 if greedy else 1.0)

    def save(self, path):
        """Write the policy to a folder that ``policy=qwen2_5_vl policy.path=…`` loads."""
        self.policy.save(path)

    def load(self, path):
        """Load what `save` wrote."""
        self.policy.load(path)

    def training_state(self):
        """Collect weights and optimizer for a checkpoint."""
        return {"model": self.policy.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state, file):
        """Load what `training_state` returned."""
        self.policy.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
