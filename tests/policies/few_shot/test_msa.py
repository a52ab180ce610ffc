"""MSA: its adapters by hand."""

from __future__ import annotations

import torch
from torch import nn

from maskgym.policies.few_shot.msa import Adapter, AdapterAfter, AdapterBeside


def test_adapters_by_hand():
    adapter, tokens = Adapter(8, bottleneck=4), torch.full((1, 8), 3.0)
    assert adapter[0].out_features == 2
    nn.init.ones_(adapter[2].bias)
    double = nn.Linear(8, 8, bias=False)
    nn.init.eye_(double.weight)
    double.weight.data *= 2
    torch.testing.assert_close(AdapterAfter(double, adapter)(tokens), torch.full((1, 8), 7.0))
    torch.testing.assert_close(AdapterBeside(double, adapter)(tokens), torch.full((1, 8), 6.5))
