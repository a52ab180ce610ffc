"""Implement MSA, the Medical SAM Adapter: two small adapters per block of the image encoder, and the mask decoder.

References:
    Wu et al., Medical SAM Adapter: Adapting Segment Anything Model for Medical Image Segmentation, arXiv 2304.12620,
    Section 3. MedicineToken/Medical-SAM-Adapter, models/ImageEncoder/vit/adapter_block.py.
    Houlsby et al., Parameter-efficient transfer learning for NLP, ICML 2019.
"""

from __future__ import annotations

from torch import Tensor, nn

from maskgym.policies.few_shot.adapted_sam import PREDICTED, check_at_least_1
from maskgym.policies.few_shot.trained_sam import TrainedSam
from maskgym.segmenters.points.sam import SamSegmenter


class MSA(TrainedSam):
    """SAM with adapters.

    As published: an adapter is a projection to a quarter of the channels, GELU, and a projection back; one follows the
    attention, with a skip connection, the other stands beside the MLP, scaled by 0.5. The rest of the image encoder and
    the prompt encoder are frozen. The whole mask decoder is fine-tuned, as in the authors' code (the paper draws
    adapters there too).

    Departures: no prompt, where the authors give clicks or boxes on the ground truth; the adapters' last projection
    starts at 0, so that training starts from SAM; cross-entropy plus Dice, which their code uses for volumes; AdamW
    with ten times their learning rate, for a short schedule; no branch for depth, which serves volumes only.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.
        bottleneck: Ratio of an embedding's channels to the channels inside an adapter.
        steps: See `TrainedSam`.
        batch_size: See `TrainedSam`.
        learning_rate: See `TrainedSam`.
        weight_decay: See `TrainedSam`.
        seed: See `TrainedSam`.
        micro_batch: See `TrainedSam`.
        checkpointing: See `TrainedSam`.
        predict_batch: See `AdaptedSam`.
    """

    cross_entropy_weight, dice_weight = 1.0, 1.0

    def __init__(
        self,
        segmenter: SamSegmenter,
        bottleneck: int = 4,
        steps: int = 300,
        batch_size: int = 8,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
        micro_batch: int | None = None,
        checkpointing: bool = False,
        predict_batch: int = PREDICTED,
    ) -> None:
        check_at_least_1(bottleneck=bottleneck)
        self.bottleneck = bottleneck
        super().__init__(
            segmenter,
            steps,
            batch_size,
            learning_rate,
            weight_decay,
            seed,
            micro_batch,
            checkpointing,
            predict_batch,
        )

    def _add_weights(self) -> None:
        for block in self.sam.image_encoder.blocks:
            channels = block.norm1.normalized_shape[0]
            block.attn = AdapterAfter(block.attn, Adapter(channels, self.bottleneck).to(self.device))
            block.mlp = AdapterBeside(block.mlp, Adapter(channels, self.bottleneck).to(self.device))


class Adapter(nn.Sequential):
    """Projection down, GELU and projection up; the output is 0 before training.

    Args:
        channels: Number of channels of the tokens.
        bottleneck: Ratio of ``channels`` to the channels inside; at least one channel is left.
    """

    def __init__(self, channels: int, bottleneck: int) -> None:
        inside = max(1, channels // bottleneck)
        super().__init__(nn.Linear(channels, inside), nn.GELU(), nn.Linear(inside, channels))
        for weight in self[2].parameters():
            nn.init.zeros_(weight)


class AdapterAfter(nn.Module):
    """A layer and an adapter of its output y, with a skip connection: y + adapter(y)."""

    def __init__(self, layer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.layer, self.adapter = layer, adapter

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the layer and the adapter to tokens (…, C)."""
        output = self.layer(tokens)
        return output + self.adapter(output)


class AdapterBeside(nn.Module):
    """A layer and an adapter of its input x: layer(x) + 0.5 · adapter(x)."""

    SCALE = 0.5

    def __init__(self, layer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.layer, self.adapter = layer, adapter

    def forward(self, tokens: Tensor) -> Tensor:
        """Add the outputs of layer and adapter for tokens (…, C)."""
        return self.layer(tokens) + self.SCALE * self.adapter(tokens)
