"""maskgym: Gymnasium environments whose episodes end in a mask. Importing it registers them."""

from maskgym import interrupt  # noqa: F401 - before the imports that take long

# isort: split
from maskgym import envs

__version__ = "0.1.0"
__all__ = ["envs"]
