"""Implement UserSal and UserSal+, which prompt a frozen salient-object network with the user's need (UserSOD).

The network and the text encoder are frozen. The trained part maps the words of a need to prompt tokens; in UserSal+ it
also adds appearance to the features between encoder and decoder.

The paper leaves these choices open; each is an argument:

- *Number and place of tokens.* Each place of the backbone's encoder and decoder gets four tokens. Each token depends on
  all levels of the text, so that a place can use both words and sentences.
- *Need of zeros.* Table 5 pads the text with zeros for plain salient objects. Zero tokens would still receive
  attention, so they are excluded: without a need the output is bit-identical to the backbone's.
  ``skip_empty_need=False`` includes them.
- *Axis and weight of the KL divergence.* See `maskgym.policies.needs.appearance`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym import files, manifest
from maskgym.aliases import JsonObject, Settings
from maskgym.errors import UserError
from maskgym.policies.needs.appearance import KL_AXES, AppearanceSimilarityAdder, appearance_loss
from maskgym.policies.needs.need_encoder import NeedEncoder
from maskgym.policies.needs.saliency_backbone import SaliencyBackbone
from maskgym.segmenters.weights import load_strictly, read_state, write_state, write_text

WEIGHTS, DESCRIPTION = "policy.safetensors", "policy.json"  # files in the folder of a saved policy
FROZEN = ("backbone", "encoder")
ADAPTS = ("decoder", "encoder")
CELLS = ("all", "object")  # positions of the appearance loss
RENAMED = {"bypass": "skip_empty_need", "most_keys": "max_attention_keys"}  # settings in older descriptions
_Part = TypeVar("_Part")


class UserSal(nn.Module):
    """Multi-modal prompt learning on a frozen salient-object network (Eq. 2).

    Args:
        backbone: Network trained as a plain detector, frozen in place; or settings ``{name: …, setting: …}`` for
            `maskgym.policies.make_backbone`.
        encoder: Need encoder, frozen in place; or settings for `maskgym.policies.make_need_encoder`.
        checkpoint: Folder that `save` wrote, for the initial weights; None initialises them at random.
        device: PyTorch device; None selects CUDA if available.
        tokens: Number of prompt tokens at each place of the backbone.
        hidden: Width of the token generators per level.
        skip_empty_need: Whether to exclude the tokens of an empty need, which makes the output the plain detector's.

    Raises:
        UserError: If a size is out of range, or a part or the checkpoint cannot be loaded.
    """

    tasks: ClassVar[tuple[str, ...]] = ("user_need", "ranking")
    kind: ClassVar[str] = "usersal"
    adapts: str = "decoder"

    def __init__(
        self,
        backbone: SaliencyBackbone | Settings,
        encoder: NeedEncoder | Settings,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        tokens: int = 4,
        hidden: int = 128,
        skip_empty_need: bool = True,
    ) -> None:
        for name, value in (("tokens", tokens), ("hidden", hidden)):
            if value < 1:
                raise UserError(f"policy.{name}={value}: expected at least 1")
        from maskgym.policies import make_backbone, make_need_encoder  # a local import avoids an import cycle

        super().__init__()
        self.backbone = _part("backbone", make_backbone, backbone).requires_grad_(False)
        self.encoder = _part("encoder", make_need_encoder, encoder).requires_grad_(False)
        self.skip_empty_need = skip_empty_need
        dims = (*self.backbone.encoder_prompt_dims, *self.backbone.decoder_prompt_dims)
        self.prompts = PromptGenerator(self.encoder.levels, self.encoder.width, dims, tokens, hidden)
        self.settings: dict[str, bool | int | str] = {
            "tokens": tokens,
            "hidden": hidden,
            "skip_empty_need": skip_empty_need,
        }
        self.train()
        self.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if checkpoint is not None:
            self.load(checkpoint)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.prompts.shared.weight.device

    def train(self, mode: bool = True) -> UserSal:
        """Set the mode of the trained modules; frozen modules stay in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        self.encoder.eval()
        return self

    def forward(self, pixels: Tensor, needs: Sequence[str]) -> Tensor:
        """Compute logits of the saliency maps, float32 (B, 1, S, S).

        Args:
            pixels: float32 (B, 3, S, S), RGB in [0, 1].
            needs: One text per image; an empty text asks for salient objects.
        """
        return self._run(pixels, needs)[0]

    def loss(self, pixels: Tensor, needs: Sequence[str], targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss, mean squared error plus terms of a subclass (Eq. 5), and each term by name.

        All terms are means over the images; images without a need contribute 0 to the terms of a subclass.

        Args:
            pixels: See `forward`.
            needs: See `forward`.
            targets: float32 (B, 1, S, S) in [0, 1].
        """
        logits, asked, features = self._run(pixels, needs)
        terms = {"mse": F.mse_loss(logits.float().sigmoid(), targets)}  # in float32 under autocast too
        if asked.any():
            share = asked.float().mean()
            more = self._more_terms(features, pixels[asked], targets[asked])
            terms |= {name: share * term for name, term in more.items()}
        loss = torch.stack(list(terms.values())).sum()
        return loss, {"loss": loss.item(), **{n: terms[n].item() if n in terms else 0.0 for n in self.terms}}

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms."""
        return ("mse",)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """List all parameters except those of the backbone and the encoder."""
        return [parameter for name, parameter in self.named_parameters() if name.partition(".")[0] not in FROZEN]

    def trained_state(self) -> dict[str, Tensor]:
        """Select the trained modules' part of the state dict."""
        return {name: value for name, value in self.state_dict().items() if name.partition(".")[0] not in FROZEN}

    def load_trained_state(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Load a state dict from `trained_state`, or reject it as a whole.

        Raises:
            UserError: If names or shapes do not fit; the message names ``source``.
        """
        trained = nn.ModuleDict({name: part for name, part in self.named_children() if name not in FROZEN})
        load_strictly(trained, state, source, assign=False)  # copying keeps the parameters that an optimizer holds

    def describe(self) -> dict[str, bool | int | str]:
        """Describe the policy that the trained weights fit: kind, settings and fingerprints of frozen modules."""
        frozen = {"backbone": fingerprint(self.backbone), "encoder": str(self.encoder.fingerprint)}
        return {"kind": self.kind, **frozen, **self.settings}

    def check(self, description: JsonObject, source: Path) -> None:
        """Raise a UserError that names ``source`` if the description does not match this policy."""
        # Older descriptions lack `adapts`: the encoder's features were adapted.
        given = {"adapts": "encoder"} | {RENAMED.get(name, name): value for name, value in description.items()}
        for name, value in self.describe().items():
            if given.get(name) != value:
                raise UserError(f"{source}: its policy has {name}={given.get(name)}: expected {value}")

    def save(self, folder: str | Path) -> None:
        """Write the trained weights, the description of the policy and a manifest to a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_state(self.trained_state(), Path(folder) / WEIGHTS)
        write_text(json.dumps(self.describe(), indent=1), Path(folder) / DESCRIPTION)
        manifest.write(Path(folder), names=(WEIGHTS, DESCRIPTION))

    def load(self, folder: str | Path) -> None:
        """Load the weights that `save` wrote.

        Raises:
            UserError: If the weights are missing, damaged, or belong to another kind, backbone, encoder or setting.
        """
        weights, file = Path(folder).expanduser() / WEIGHTS, Path(folder).expanduser() / DESCRIPTION
        manifest.check(weights.parent)
        self.check(_read_description(file), file)
        self.load_trained_state(read_state(weights), weights)

    def _run(self, pixels: Tensor, needs: Sequence[str]) -> tuple[Tensor, Tensor, Mapping[int, Tensor]]:
        """Compute logits (B, 1, S, S), bool (B,) for rows with a need, and by scale the features F' of those rows."""
        if len(needs) != len(pixels):
            raise ValueError(f"{len(needs)} needs: expected one for each of {len(pixels)} images")
        words = self.encoder.encode(needs).to(pixels.device, torch.float32).clone()  # (B, levels, width)
        asked = (
            words.flatten(1).any(dim=1) if self.skip_empty_need else torch.ones_like(words[:, 0, 0], dtype=torch.bool)
        )
        if not asked.any():
            return self._plain(pixels), asked, {}
        places = len(self.backbone.encoder_prompt_dims)
        prompts = self.prompts(words[asked])
        features = self.backbone.encode(pixels[asked], prompts[:places] or None)
        adapted: dict[int, Tensor] = {}  # the features F' by scale
        images = self._images(pixels[asked])

        def adapt(scale: int, maps: Tensor) -> Tensor:
            adapted[scale] = self._adapt(scale, maps, images)
            return adapted[scale]

        if self.adapts == "encoder":
            features = [adapt(scale, maps) for scale, maps in enumerate(features)]
        logits = self.backbone.decode(features, prompts[places:] or None, adapt if self.adapts == "decoder" else None)
        if not asked.all():
            plain, prompted = self._plain(pixels[~asked]), logits
            logits = plain.new_empty(len(pixels), *plain.shape[1:])
            logits[~asked], logits[asked] = plain, prompted
        return logits, asked, adapted

    @torch.no_grad()
    def _plain(self, pixels: Tensor) -> Tensor:
        return self.backbone(pixels)

    def _images(self, pixels: Tensor) -> list[Tensor]:
        """Compute what `_adapt` needs of images alone."""
        return []

    def _adapt(self, scale: int, features: Tensor, images: Sequence[Tensor]) -> Tensor:
        """Adapt the features (B, C_n, H_n, W_n) of a scale for the decoder."""
        return features

    def _more_terms(self, features: Mapping[int, Tensor], pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compute further loss terms by name, as means over images that all have a need."""
        return {}


class UserSalPlus(UserSal):
    """UserSal with an appearance similarity adder at every scale, and the appearance loss (Eq. 3–5).

    The switches are the rows of Table 5. Without ``similarity`` and ``adder`` the features stay unchanged;
    `AppearanceSimilarityAdder` describes one without the other.

    Args:
        backbone: See `UserSal`.
        encoder: See `UserSal`.
        checkpoint: See `UserSal`.
        device: See `UserSal`.
        tokens: See `UserSal`.
        hidden: See `UserSal`.
        skip_empty_need: See `UserSal`.
        similarity: Whether to use the similarity computer (SC).
        adder: Whether to use the appearance information adder (AIA).
        appearance_loss: Whether to train with Eq. 4 (AL).
        multi_scale: Whether to adapt every scale (MS) or only the coarsest.
        siamese: See `AppearanceSimilarityAdder`.
        width: See `AppearanceSimilarityAdder`.
        heads: See `AppearanceSimilarityAdder`.
        window: See `AppearanceSimilarityAdder`.
        max_attention_keys: See `AppearanceSimilarityAdder`.
        kl_axis: See `maskgym.policies.needs.appearance.appearance_loss`.
        kl_temperature: See `maskgym.policies.needs.appearance.appearance_loss`.
        appearance_weight: Weight of the appearance loss, summed over scales; 1 is Eq. 5.
        adapts: Features that appearance is added to: those that enter the ``decoder`` at each scale, which all depend
            on the need, or those of the ``encoder``, of which VST's at 1/4 and 1/8 do not.
        appearance_cells: Positions that the appearance loss averages: ``all``, as Eq. 4, or ``object``, weighted by
            the share of the ground truth in each.

    Raises:
        UserError: If a name is unknown or a size out of range, or a part or the checkpoint cannot be loaded.
    """

    kind: ClassVar[str] = "usersal_plus"

    def __init__(
        self,
        backbone: SaliencyBackbone | Settings,
        encoder: NeedEncoder | Settings,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        tokens: int = 4,
        hidden: int = 128,
        skip_empty_need: bool = True,
        similarity: bool = True,
        adder: bool = True,
        appearance_loss: bool = True,
        multi_scale: bool = True,
        siamese: str = "swin",
        width: int = 64,
        heads: int = 4,
        window: int = 7,
        max_attention_keys: int = 1024,
        kl_axis: str = "channels",
        kl_temperature: float = 1.0,
        appearance_weight: float = 1.0,
        appearance_cells: str = "all",
        adapts: str = "decoder",
    ) -> None:
        if kl_axis not in KL_AXES:
            raise UserError(f"policy.kl_axis={kl_axis!r}: expected one of {', '.join(KL_AXES)}")
        for name, value in (("kl_temperature", kl_temperature), ("appearance_weight", appearance_weight)):
            if not value > 0:
                raise UserError(f"policy.{name}={value}: expected more than 0")
        if adapts not in ADAPTS:
            raise UserError(f"policy.adapts={adapts!r}: expected one of {', '.join(ADAPTS)}")
        if appearance_cells not in CELLS:
            raise UserError(f"policy.appearance_cells={appearance_cells!r}: expected one of {', '.join(CELLS)}")
        if appearance_cells == "object" and kl_axis != "channels":
            raise UserError(f"policy.kl_axis={kl_axis}: has no positions to weigh: expected channels with object cells")
        super().__init__(backbone, encoder, None, device, tokens, hidden, skip_empty_need)
        dims = self.backbone.feature_dims
        self.scales = list(range(len(dims))) if multi_scale else [len(dims) - 1]
        own: Settings = {
            "similarity": similarity,
            "adder": adder,
            "siamese": siamese,
            "width": width,
            "heads": heads,
            "window": window,
            "max_attention_keys": max_attention_keys,
        }
        adapted = self.scales if similarity or adder else []
        self.adders = nn.ModuleDict({str(n): AppearanceSimilarityAdder(dims[n], **own) for n in adapted})
        self.adders.to(self.device)
        self.adapts = adapts
        self.settings |= {**own, "multi_scale": multi_scale, "adapts": adapts}
        self.kl_axis, self.kl_temperature, self.appearance_cells = kl_axis, kl_temperature, appearance_cells
        self.appearance_weight = appearance_weight if appearance_loss else 0.0
        if checkpoint is not None:
            self.load(checkpoint)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms."""
        return ("mse", "appearance") if self.appearance_weight else ("mse",)

    def _images(self, pixels: Tensor) -> list[Tensor]:
        return self._scales(pixels) if self.adders else []  # SME(I): IF at each scale

    @torch.no_grad()
    def _scales(self, pixels: Tensor) -> list[Tensor]:
        """Compute the features of each scale without prompts, of what is adapted."""
        return self.backbone.encode(pixels) if self.adapts == "encoder" else self.backbone.scales(pixels)

    def _adapt(self, scale: int, features: Tensor, images: Sequence[Tensor]) -> Tensor:
        if str(scale) not in self.adders:
            return features
        return self.adders[str(scale)](features, images[scale])

    def _more_terms(self, features: Mapping[int, Tensor], pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if not self.appearance_weight:
            return {}
        wanted = self._scales(pixels * targets)  # SME*(I ⊙ GT)

        def loss(scale: int) -> Tensor:
            size = features[scale].shape[2:]
            shares = F.adaptive_avg_pool2d(targets, size) if self.appearance_cells == "object" else None
            return appearance_loss(wanted[scale], features[scale], self.kl_axis, self.kl_temperature, shares)

        each = [loss(scale) for scale in self.scales]
        return {"appearance": self.appearance_weight * torch.stack(each).sum(dim=0).mean()}


class PromptGenerator(nn.Module):
    """Map the features of needs to tokens for each place, without biases, so that zeros map to zeros.

    Args:
        levels: Number of features per need.
        width: Width of a feature.
        dims: Width of the tokens of each place.
        tokens: Number of tokens at each place.
        hidden: Width of the first projection of each feature, which all places share.
    """

    def __init__(self, levels: int, width: int, dims: Sequence[int], tokens: int, hidden: int) -> None:
        super().__init__()
        self.width, self.tokens = width, tokens
        self.shared = nn.Linear(width, hidden, bias=False)
        self.places = nn.ModuleList(nn.Linear(levels * hidden, tokens * dim, bias=False) for dim in dims)

    def forward(self, words: Tensor) -> list[Tensor]:
        """Compute tokens (B, T, D) for each place from features (B, levels, width)."""
        words = F.gelu(self.shared(F.layer_norm(words, (self.width,)))).flatten(1)  # (B, levels · hidden)
        return [place(words).unflatten(1, (self.tokens, -1)) for place in self.places]


def fingerprint(module: nn.Module) -> str:
    """Compute 16 hexadecimal digits from the names, shapes, types and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _part(kind: str, make: Callable[..., _Part], given: _Part | Settings) -> _Part:
    if not isinstance(given, Mapping):
        return given
    if "name" not in given:
        raise UserError(f"policy.{kind}={dict(given)}: expected a name, and settings beside it")
    return make(**given)


def _read_description(file: Path) -> JsonObject:
    try:
        description = json.loads(files.read(file))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file: expected the folder of a saved policy") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: expected the description of a saved policy") from error
    if not isinstance(description, dict):
        raise UserError(f"{file}: holds a {type(description).__name__}: expected names and values")
    return description
