"""Connections to a Ray cluster."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from maskgym.errors import UserError

CONNECT_S = 10  # timeout of the connection, since Ray itself tries for minutes


@contextmanager
def connected(address: str | None, option: str = "scale.address") -> Iterator[None]:
    """Connect to a cluster, or start one on this machine if the address is None; disconnect at the end.

    Args:
        address: ``HOST:PORT``, ``auto``, ``ray://HOST:PORT``, or None for a new one, even where another one runs or
            ``RAY_ADDRESS`` names one.
        option: Name of the option that set the address, for error messages.

    Raises:
        UserError: If Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("Ray is not installed: pip install 'maskgym[ray]'") from error
    local = {"include_dashboard": False} if address is None else {}
    try:
        host, _, port = str(address).removeprefix("ray://").rpartition(":")
        if host:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        where = "local" if address is None else address  # with None, Ray joins whatever cluster it finds
        ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{option}={address}: no cluster answers (one with a token: RAY_AUTH_MODE=token): {said}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
