"""REINFORCE for clicks: returns to go, with their mean at each step as baseline."""

import torch

from maskgym.agents.common.checkpoints import CheckpointedAgent
from maskgym.errors import UserError


class ReinforceClicks(CheckpointedAgent):
    """Raise the log-probability of clicks that earn more than the others of their step."""

    tasks = ("point_prompt", "user_need_point")
    checkpoint_name = "reinforce.pt"

    def __init__(self, policy, env, seed=0, output=".", learning_rate=3e-3, save_every=10):
        super().__init__(seed, output, save_every)
        if env.unwrapped.recalibration is not None:
            raise UserError("reinforce_clicks trains no recalibration module: expected env.label_source=policy")
        torch.manual_seed(seed)
        self.network = policy.network(env.single_observation_space, env.single_action_space)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)

    def train(self, envs, updates, on_log, resume=False):
        """Play one episode per sub-environment, then take one gradient step."""
        for update in range(self.restore() if resume else 0, updates):
            env, number = envs[update % len(envs)], 100_000 * self.seed + update
            torch.manual_seed(number)
            observations, _ = env.reset(seed=number)
            earned, chances = [], []
            for _ in range(env.unwrapped.horizon):
                rows = [{name: value[i] for name, value in observations.items()} for i in range(env.num_envs)]
                actions = self.network.sample(rows)
                chances.append(self.network.log_probabilities(rows, actions))  # (B,), with gradient
                observations, rewards, *_ = env.step(actions)
                earned.append(torch.as_tensor(rewards, dtype=torch.float32))
            to_go = torch.stack(earned).flip(0).cumsum(0).flip(0)  # (T, B)
            loss = -((to_go - to_go.mean(dim=1, keepdim=True)) * torch.stack(chances)).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.finish_update(update + 1, {"reward": to_go[0].mean().item(), "loss": loss.item()}, on_log)

    def act(self, observations, greedy=True):
        """Choose one click per observation."""
        return self.network.sample(observations, greedy)

    def training_state(self):
        """Collect weights and optimizer for checkpoints."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state, file):
        """Load what `training_state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
