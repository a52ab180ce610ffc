"""Implement SAMed: low-rank updates of the image encoder's attention, and a fine-tuned mask decoder.

References:
    Zhang and Liu, Customized Segment Anything Model for Medical Image Segmentation, arXiv 2304.13785, Section 3.
    hitachinsk/SAMed, trainer.py. Hu et al., LoRA, ICLR 2022.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from maskgym.errors import UserError
from maskgym.policies.few_shot.adapted_sam import PREDICTED
from maskgym.policies.few_shot.trained_sam import TrainedSam
from maskgym.segmenters.points.sam import SamSegmenter


class SAMed(TrainedSam):
    """SAM with low-rank updates (LoRA).

    As published: rank 4 on the query and value projections of every block, with the rest of the image encoder frozen;
    no prompt, instead the prompt encoder's default embedding is trained; the whole mask decoder is trained; loss 0.2
    cross-entropy + 0.8 Dice on the low-resolution output; AdamW with warm-up, decay and weight decay 0.1.

    Departures: one foreground class, so one mask with binary cross-entropy instead of a softmax over classes; Dice of
    that class alone, per image; quarter turns and flips, without SAMed's small rotations; a short schedule, for few
    samples.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.
        rank: Rank of the updates; 0 leaves the image encoder as it is, and the mask decoder alone is adapted.
        steps: See `TrainedSam`.
        batch_size: See `TrainedSam`.
        learning_rate: See `TrainedSam`; the default is the authors' value.
        weight_decay: See `TrainedSam`.
        seed: See `TrainedSam`.
        micro_batch: See `TrainedSam`.
        checkpointing: See `TrainedSam`.
        predict_batch: See `AdaptedSam`.
    """

    cross_entropy_weight, dice_weight = 0.2, 0.8

    def __init__(
        self,
        segmenter: SamSegmenter,
        rank: int = 4,
        steps: int = 300,
        batch_size: int = 8,
        learning_rate: float = 5e-3,
        weight_decay: float = 0.1,
        seed: int = 0,
        micro_batch: int | None = None,
        checkpointing: bool = False,
        predict_batch: int = PREDICTED,
    ) -> None:
        if rank < 0:
            raise UserError(f"rank={rank}: expected at least 0")
        self.rank = rank
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
        self.sam.prompt_encoder.no_mask_embed.requires_grad_(True)
        if not self.rank:
            return
        for block in self.sam.image_encoder.blocks:
            block.attn.qkv = SeparateProjections(block.attn.qkv)
        # With alpha equal to the rank the update is not scaled, as in the authors' code.
        low_rank = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=["query", "value"])
        inject_adapter_in_model(low_rank, self.sam.image_encoder)


class SeparateProjections(nn.Module):
    """SAM's fused projection to queries, keys and values as three layers, so that each can be adapted by itself.

    Args:
        projection: Linear layer from C channels to 3 C: queries, keys, values.
    """

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        for name, rows, offsets in zip(
            ("query", "key", "value"), projection.weight.chunk(3), projection.bias.chunk(3), strict=True
        ):
            layer = nn.Linear(projection.in_features, len(rows), device=rows.device)
            layer.load_state_dict({"weight": rows, "bias": offsets})
            self.add_module(name, layer)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project tokens (…, C) to (…, 3 C)."""
        return torch.cat([layer(tokens) for layer in self.children()], dim=-1)
