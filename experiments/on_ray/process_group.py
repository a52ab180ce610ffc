"""The process group of workers on several machines: over the network that Ray uses between them."""

from __future__ import annotations

from ray.train.torch import TorchConfig

from maskgym.experiments.wiring.cluster import use_network_of_ray


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Sets up the process group as Ray does, after `use_network_of_ray` in each worker."""

    def on_start(self, worker_group: object, backend_config: TorchConfig) -> None:
        worker_group.execute(use_network_of_ray)  # type: ignore[attr-defined]
        super().on_start(worker_group, backend_config)


class NetworkedTorchConfig(TorchConfig):
    """Ray's setup of the process group, over the network of the cluster; the arguments are Ray's."""

    @property
    def backend_cls(self) -> type:
        """Class that sets the process group up."""
        return _Backend
