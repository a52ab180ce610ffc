"""UserSal and UserSal+: a frozen salient-object network told by prompt tokens what the user is looking for (UserSOD).

The network and the text encoder stay as they are; what is trained makes tokens of the words of a need, and in UserSal+
adds appearance to the features between encoder and decoder.

What the paper does not say, and what is done here; each is an argument:

- *How many tokens, where.* Four at each place that the backbone offers, of encoder and decoder. All levels of the text
  are read for each token, so that a place may take what it needs of words and of sentences.
- *What a need of zeros does.* Table 5 pads the text with zeros for plain salient objects. Zero tokens in an attention
  still draw weight to themselves, so they are left out of it: without a need the answer is the backbone's own, to the
  bit. With ``bypass=False`` they stay, as padded ones would.
- *The axis of the KL divergence, and its weight beside the squared error*: see `maskgym.policies.needs.appearance`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.policies.needs.appearance import KL_AXES, AppearanceSimilarityAdder, appearance_loss
from maskgym.policies.needs.need_encoder import NeedEncoder
from maskgym.policies.needs.saliency_backbone import SaliencyBackbone
from maskgym.segmenters.weights import load_strictly, read_state, write_state, write_text

WEIGHTS, DESCRIPTION = "policy.safetensors", "policy.json"  # of a saved policy's folder
FROZEN = ("backbone", "encoder")


class UserSal(nn.Module):
    """Multi-modal prompt learning on a frozen salient-object network (Eq. 2).

    Args:
        backbone: The network, trained as a plain detector; it is frozen, in place.
        encoder: Of needs; frozen too.
        tokens: Prompt tokens at each place of the backbone.
        hidden: Width of the generators of tokens, a level.
        bypass: Leave the tokens of an empty need out, so that the answer is the plain detector's.

    Raises:
        UserError: If a size is out of range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("user_need", "ranking")
    kind: ClassVar[str] = "usersal"

    def __init__(
        self,
        backbone: SaliencyBackbone,
        encoder: NeedEncoder,
        tokens: int = 4,
        hidden: int = 128,
        bypass: bool = True,
    ) -> None:
        for name, value in (("tokens", tokens), ("hidden", hidden)):
            if value < 1:
                raise UserError(f"policy.{name}={value}: expected at least 1")
        super().__init__()
        self.backbone, self.encoder, self.bypass = backbone.requires_grad_(False), encoder.requires_grad_(False), bypass
        dims = (*backbone.encoder_prompt_dims, *backbone.decoder_prompt_dims)
        self.prompts = PromptGenerator(encoder.levels, encoder.width, dims, tokens, hidden)
        self.settings: dict[str, Any] = {"tokens": tokens, "hidden": hidden, "bypass": bypass}
        self.train()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.prompts.shared.weight.device

    def train(self, mode: bool = True) -> UserSal:
        """Set the mode of what is trained; what is frozen stays in evaluation mode."""
        super().train(mode)
        for name in FROZEN:
            getattr(self, name).eval()
        return self

    def forward(self, pixels: Tensor, needs: Sequence[str]) -> Tensor:
        """Return logits of the maps, float32 (B, 1, S, S).

        Args:
            pixels: float32 (B, 3, S, S), RGB in [0, 1].
            needs: One text an image; the empty one asks for what is salient.
        """
        return self._run(pixels, needs)[0]

    def loss(self, pixels: Tensor, needs: Sequence[str], targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the mean squared error of the maps plus what a subclass adds (Eq. 5), and each by name.

        All are means over the images; to what a subclass adds, those without a need contribute 0.

        Args:
            pixels: See `forward`.
            needs: See `forward`.
            targets: float32 (B, 1, S, S) in [0, 1].
        """
        logits, asked, features = self._run(pixels, needs)
        terms = {"mse": F.mse_loss(logits.sigmoid(), targets)}
        if asked.any():
            share = asked.float().mean()
            more = self._more_terms(features, pixels[asked], targets[asked])
            terms |= {name: share * term for name, term in more.items()}
        loss = torch.stack(list(terms.values())).sum()
        return loss, {"loss": loss.item(), **{n: terms[n].item() if n in terms else 0.0 for n in self.terms}}

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what is minimised together."""
        return ("mse",)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those of the backbone and the encoder."""
        return [parameter for name, parameter in self.named_parameters() if name.partition(".")[0] not in FROZEN]

    def trained_state(self) -> dict[str, Tensor]:
        """Return the state of what is trained."""
        return {name: value for name, value in self.state_dict().items() if name.partition(".")[0] not in FROZEN}

    def load_trained_state(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Take what `trained_state` returned, or refuse it whole.

        Raises:
            UserError: If names or shapes do not fit; it names ``source``.
        """
        trained = nn.ModuleDict({name: part for name, part in self.named_children() if name not in FROZEN})
        load_strictly(trained, state, source, assign=False)  # an optimiser may hold the parameters

    def describe(self) -> dict[str, Any]:
        """Return what the trained weights fit: kind, settings, and fingerprints of what is frozen."""
        frozen = {"backbone": fingerprint(self.backbone), "encoder": str(self.encoder.fingerprint)}
        return {"kind": self.kind, **frozen, **self.settings}

    def check(self, description: Mapping[str, Any], source: Path) -> None:
        """Raise a UserError if weights with this description are not for this policy; it names ``source``."""
        for name, value in self.describe().items():
            if description.get(name) != value:
                raise UserError(f"{source}: its policy has {name}={description.get(name)}: expected {value}")

    def save(self, folder: str | Path) -> None:
        """Write what is trained, and what it was trained on, into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_state(self.trained_state(), Path(folder) / WEIGHTS)
        write_text(json.dumps(self.describe(), indent=1), Path(folder) / DESCRIPTION)

    def load(self, folder: str | Path) -> UserSal:
        """Take the weights that `save` wrote; return the policy.

        Raises:
            UserError: If there are none, or they are of another kind, backbone, encoder or setting.
        """
        weights, file = Path(folder).expanduser() / WEIGHTS, Path(folder).expanduser() / DESCRIPTION
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{file}: no such file: expected the folder of a saved policy") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read: expected what a saved policy says of itself") from error
        if not isinstance(description, dict):
            raise UserError(f"{file}: holds a {type(description).__name__}: expected names and values")
        self.check(description, file)
        self.load_trained_state(read_state(weights), weights)
        return self

    def _run(self, pixels: Tensor, needs: Sequence[str]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return logits (B, 1, S, S), which rows have a need, bool (B,), and the features F' of those."""
        if len(needs) != len(pixels):
            raise ValueError(f"{len(needs)} needs: expected one for each of {len(pixels)} images")
        words = self.encoder.encode(needs).to(pixels.device, torch.float32).clone()  # (B, levels, width)
        asked = words.flatten(1).any(dim=1) if self.bypass else torch.ones_like(words[:, 0, 0], dtype=torch.bool)
        if not asked.any():
            return self._plain(pixels), asked, []
        places = len(self.backbone.encoder_prompt_dims)
        prompts = self.prompts(words[asked])
        features = self.backbone.encode(pixels[asked], prompts[:places] or None)
        features = self._adapt(features, pixels[asked])
        logits = self.backbone.decode(features, prompts[places:] or None)
        if not asked.all():
            plain, prompted = self._plain(pixels[~asked]), logits
            logits = plain.new_empty(len(pixels), *plain.shape[1:])
            logits[~asked], logits[asked] = plain, prompted
        return logits, asked, features

    @torch.no_grad()
    def _plain(self, pixels: Tensor) -> Tensor:
        return self.backbone(pixels)

    def _adapt(self, features: list[Tensor], pixels: Tensor) -> list[Tensor]:
        """Return the features (B, C_n, H_n, W_n) that the decoder gets."""
        return features

    def _more_terms(self, features: list[Tensor], pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return what else is minimised, by name: means over the images, which all have a need."""
        return {}


class UserSalPlus(UserSal):
    """UserSal with an appearance similarity adder at every scale, and the appearance loss (Eq. 3–5).

    The switches are the rows of Table 5. Without ``similarity`` and ``adder`` features are left alone; one without the
    other is described in `AppearanceSimilarityAdder`.

    Args:
        backbone: See `UserSal`.
        encoder: See `UserSal`.
        tokens: See `UserSal`.
        hidden: See `UserSal`.
        bypass: See `UserSal`.
        similarity: Similarity computer (SC).
        adder: Appearance information adder (AIA).
        appearance_loss: Train with Eq. 4 (AL).
        multi_scale: At every scale (MS), or at the coarsest alone.
        siamese: See `AppearanceSimilarityAdder`.
        width: See `AppearanceSimilarityAdder`.
        heads: See `AppearanceSimilarityAdder`.
        window: See `AppearanceSimilarityAdder`.
        most_keys: See `AppearanceSimilarityAdder`.
        kl_axis: See `maskgym.policies.needs.appearance.appearance_loss`.
        kl_temperature: See `maskgym.policies.needs.appearance.appearance_loss`.
        appearance_weight: Of the appearance loss, summed over scales; 1 is Eq. 5.

    Raises:
        UserError: If a name is unknown or a size out of range.
    """

    kind: ClassVar[str] = "usersal_plus"

    def __init__(
        self,
        backbone: SaliencyBackbone,
        encoder: NeedEncoder,
        tokens: int = 4,
        hidden: int = 128,
        bypass: bool = True,
        similarity: bool = True,
        adder: bool = True,
        appearance_loss: bool = True,
        multi_scale: bool = True,
        siamese: str = "swin",
        width: int = 64,
        heads: int = 4,
        window: int = 7,
        most_keys: int = 1024,
        kl_axis: str = "channels",
        kl_temperature: float = 1.0,
        appearance_weight: float = 1.0,
    ) -> None:
        if kl_axis not in KL_AXES:
            raise UserError(f"policy.kl_axis={kl_axis!r}: expected one of {', '.join(KL_AXES)}")
        for name, value in (("kl_temperature", kl_temperature), ("appearance_weight", appearance_weight)):
            if not value > 0:
                raise UserError(f"policy.{name}={value}: expected more than 0")
        super().__init__(backbone, encoder, tokens, hidden, bypass)
        own: dict[str, Any] = {"similarity": similarity, "adder": adder, "siamese": siamese, "width": width}
        own |= {"heads": heads, "window": window, "most_keys": most_keys}
        dims = backbone.feature_dims
        self.scales = list(range(len(dims))) if multi_scale else [len(dims) - 1]
        adapted = self.scales if similarity or adder else []
        self.adders = nn.ModuleDict({str(n): AppearanceSimilarityAdder(dims[n], **own) for n in adapted})
        self.settings |= {**own, "multi_scale": multi_scale}
        self.kl_axis, self.kl_temperature = kl_axis, kl_temperature
        self.appearance_weight = appearance_weight if appearance_loss else 0.0

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what is minimised together."""
        return ("mse", "appearance") if self.appearance_weight else ("mse",)

    def _adapt(self, features: list[Tensor], pixels: Tensor) -> list[Tensor]:
        if not self.adders:
            return features
        with torch.no_grad():
            images = self.backbone.encode(pixels)  # SME(I): IF at each scale
        adapted = list(features)
        for n in self.scales:
            adapted[n] = self.adders[str(n)](features[n], images[n])
        return adapted

    def _more_terms(self, features: list[Tensor], pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if not self.appearance_weight:
            return {}
        with torch.no_grad():
            wanted = self.backbone.encode(pixels * targets)  # SME*(I ⊙ GT)
        each = [appearance_loss(wanted[n], features[n], self.kl_axis, self.kl_temperature) for n in self.scales]
        return {"appearance": self.appearance_weight * torch.stack(each).sum(dim=0).mean()}


class PromptGenerator(nn.Module):
    """Tokens for each place from the features of needs; without biases, so that zeros give zeros.

    Args:
        levels: Features a need.
        width: Of a feature.
        dims: Width of the tokens of each place.
        tokens: At each place.
        hidden: Width to which each feature is brought first, for all places alike.
    """

    def __init__(self, levels: int, width: int, dims: Sequence[int], tokens: int, hidden: int) -> None:
        super().__init__()
        self.width, self.tokens = width, tokens
        self.shared = nn.Linear(width, hidden, bias=False)
        self.places = nn.ModuleList(nn.Linear(levels * hidden, tokens * dim, bias=False) for dim in dims)

    def forward(self, words: Tensor) -> list[Tensor]:
        """Return (B, T, D) for each place, for features (B, levels, width)."""
        words = F.gelu(self.shared(F.layer_norm(words, (self.width,)))).flatten(1)  # (B, levels · hidden)
        return [place(words).unflatten(1, (self.tokens, -1)) for place in self.places]


def fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that name a module's weights: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def usersal(
    backbone: Mapping[str, Any] | SaliencyBackbone,
    encoder: Mapping[str, Any] | NeedEncoder,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    tokens: int = 4,
    hidden: int = 128,
    bypass: bool = True,
) -> UserSal:
    """Return a `UserSal`.

    Args:
        backbone: ``{name: …, setting: …}`` for `maskgym.policies.make_backbone`, or one that is made.
        encoder: The same for `maskgym.policies.make_need_encoder`.
        checkpoint: A folder that `UserSal.save` wrote, to start from.
        device: A PyTorch device; None for CUDA where there is one.
        tokens: See `UserSal`, for this and what follows.
        hidden: As there.
        bypass: As there.

    Raises:
        UserError: If a part or the checkpoint cannot be had.
    """
    sizes = {"tokens": tokens, "hidden": hidden, "bypass": bypass}
    return _assemble(UserSal, backbone, encoder, checkpoint, device, sizes)


def usersal_plus(
    backbone: Mapping[str, Any] | SaliencyBackbone,
    encoder: Mapping[str, Any] | NeedEncoder,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    tokens: int = 4,
    hidden: int = 128,
    bypass: bool = True,
    similarity: bool = True,
    adder: bool = True,
    appearance_loss: bool = True,
    multi_scale: bool = True,
    siamese: str = "swin",
    width: int = 64,
    heads: int = 4,
    window: int = 7,
    most_keys: int = 1024,
    kl_axis: str = "channels",
    kl_temperature: float = 1.0,
    appearance_weight: float = 1.0,
) -> UserSalPlus:
    """Return a `UserSalPlus`; see `usersal` for the first four arguments, and `UserSalPlus` for the others."""
    settings: dict[str, Any] = {"tokens": tokens, "hidden": hidden, "bypass": bypass, "siamese": siamese}
    settings |= {"similarity": similarity, "adder": adder, "appearance_loss": appearance_loss}
    settings |= {"multi_scale": multi_scale, "width": width, "heads": heads, "window": window, "most_keys": most_keys}
    settings |= {"kl_axis": kl_axis, "kl_temperature": kl_temperature, "appearance_weight": appearance_weight}
    return _assemble(UserSalPlus, backbone, encoder, checkpoint, device, settings)


def _assemble(
    kind: Any, backbone: Any, encoder: Any, checkpoint: str | Path | None, device: str | None, settings: dict[str, Any]
) -> Any:
    parts = {
        "backbone": _make("backbone", "make_backbone", backbone) if isinstance(backbone, Mapping) else backbone,
        "encoder": _make("encoder", "make_need_encoder", encoder) if isinstance(encoder, Mapping) else encoder,
    }
    policy = kind(**parts, **settings).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return policy if checkpoint is None else policy.load(checkpoint)


def _make(part: str, registry: str, settings: Mapping[str, Any]) -> Any:
    from maskgym import policies  # which imports nothing of this module before it is asked to

    if "name" not in settings:
        raise UserError(f"policy.{part}={dict(settings)}: expected a name, and settings beside it")
    try:
        return getattr(policies, registry)(**settings)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"policy.{part}={settings['name']}: {error}") from error
