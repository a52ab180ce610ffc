"""Settings of the whole test run: no network, one copy of the package, the same examples on every machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

import maskgym

# Read when the libraries are imported, so set before any test is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("maskgym", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("maskgym")

# pytest imports the root's __init__.py by the name of the clone's folder: without this, as a second package.
sys.modules.setdefault(Path(__file__).parents[1].name, maskgym)
