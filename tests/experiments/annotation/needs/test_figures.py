from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskgym.data import run_lengths
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import figures, review


@pytest.fixture(scope="module")
def clip():
    return figures.Clip(device="cpu")


def test_similarity_is_the_models_own(clip):
    from transformers import CLIPModel

    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    text = "a red disc"
    model = CLIPModel.from_pretrained(figures.EMBEDDED, dtype=torch.float32).eval()
    side = model.config.vision_config.image_size
    square = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    given = clip.image_processor(square, do_resize=False, do_center_crop=False, return_tensors="pt")
    words = clip.tokenizer([text], return_tensors="pt")
    with torch.no_grad():
        output = model(**given, input_ids=words["input_ids"])
    near = (clip.texts([text]) @ clip.pictures([image]).T).item()
    assert near == pytest.approx(output.logits_per_image.item() / model.logit_scale.exp().item(), abs=1e-4)


def test_figures_of_a_project(project, source, clip, contents):
    listed = review.candidates(project, source)
    decisions = review.Decisions(project, writing=True)
    code = run_lengths.encode(np.eye(128, dtype=bool))
    decisions.decide(listed[0].id, "ann", "accepted", ["find another thing"])
    decisions.decide(listed[1].id, "ann", "accepted", listed[1].needs, {"segmentation": code})
    decisions.decide(listed[2].id, "ann", "accepted", listed[2].needs)
    decisions.decide(listed[3].id, "ann", "rejected", [])
    decisions.decide(listed[4].id, "ann", "undecided", ["find half"])
    found = figures.measure(project, source, clip)
    assert found["corrections"] == {
        "decided": 4,
        "share_rejected": 0.25,
        "share_text_corrected": 0.3333,
        "share_mask_corrected": 0.3333,
    }
    counts = found["counts"]
    assert (counts["images"], counts["objects"], counts["accepted"], counts["rejected"]) == (3, len(listed), 3, 1)
    assert counts["needs"] == 3 * counts["with_needs"] == 3 * len(listed) and counts["given_up"] == {}
    near = found["similarity"]
    assert near["objects"] == len(listed) - 1 and near["commands"] == 3 * near["objects"] - 4
    assert -1 <= near["own"] <= 1 and 0 <= near["own_first"] <= 1
    assert json.loads((project.folder / "figures.json").read_text()) == found
    sheet = Image.open(io.BytesIO((project.folder / "sheet.png").read_bytes()))
    assert sheet.width > 600 and len(set(sheet.convert("L").tobytes())) > 50
    before = contents(project.folder)
    figures.measure(project, source, clip)
    assert contents(project.folder) == before
    assert "share_rejected" in figures.to_text(found) and "0.25" in figures.to_text(found)


def test_killed_in_the_middle_they_are_made_again(project, source, clip, killed, deadly, contents):
    before = contents(project.folder)
    killed(lambda: figures.measure(project, deadly(source, 2), clip))
    assert contents(project.folder) == before
    figures.measure(project, source, clip)
    assert set(contents(project.folder)) - set(before) == {"figures.json", "sheet.png"}


def test_similarity_tells_an_own_command_from_anothers(source, project):
    """Pictures that are told apart by construction: each command names its own object."""

    class Perfect:
        fingerprint = "perfect"

        def pictures(self, images):
            return torch.eye(len(images))

        def texts(self, texts):
            return torch.eye(len(texts))

    listed = review.candidates(project, source)
    now = {one.id: {**review.outcome(one, None), "needs": ["find it"]} for one in listed}
    near = figures.similarity(source, listed, now, Perfect())
    assert (near["own"], near["other"], near["own_first"]) == (1.0, 0.0, 1.0)
    alone = figures.similarity(source, listed[:1], now, Perfect())
    assert (alone["own"], alone["other"]) == (1.0, None)
    assert figures.similarity(source, [], now, Perfect())["own"] is None


def test_nothing_decided_has_no_shares(project, source):
    shares = figures.corrections(review.candidates(project, source), {})
    assert shares == {
        "decided": 0,
        "share_rejected": None,
        "share_text_corrected": None,
        "share_mask_corrected": None,
    }


def test_a_folder_without_a_clip_is_told(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        figures.Clip(str(tmp_path))
