"""Names for the nested dictionaries that Gymnasium, YAML and JSON leave open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Observation = Mapping[str, Any]  # one sub-environment: names to arrays or text, as its space says
Observations = dict[str, Any]  # a batch: each value has one entry per sub-environment
Infos = dict[str, Any]  # Gymnasium's infos: named values, and masks of presence under "_name"
Config = dict[str, Any]  # a composed config: nested as in YAML
Json = dict | list | str | int | float | bool | None  # any parsed JSON, not yet checked
JsonObject = dict[str, Any]  # parsed JSON
Settings = Mapping[str, Any]  # arguments of a part by name, as a config holds them
