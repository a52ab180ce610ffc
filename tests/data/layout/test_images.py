from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from maskgym.data.layout.images import (
    FOREGROUND,
    SUFFIXES,
    DataFault,
    check_same_size,
    inspect_mask,
    is_picture,
    read_all,
    read_image,
    read_labels,
    read_levels,
    read_mask,
    read_pair,
)
from maskgym.errors import UserError


def test_photo_is_turned_as_exif_says(tmp_path):
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 0] = 255  # upper left corner as stored
    exif = Image.Exif()
    exif[274] = 6  # turn 90 degrees clockwise to view
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (4, 2, 3)
    assert image[0, 1].tolist() == [255, 255, 255]  # now upper right
    assert image.sum() == 3 * 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_photo_of_any_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and image.flags.writeable
    assert image.min() == 255


@pytest.mark.filterwarnings("error")
def test_palette_photo_with_transparency(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "a.png", transparency=b"\x00\xff")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 300, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "P"])
def test_mask_of_any_grey_mode(tmp_path, mode):
    levels = np.array([[0, 255], [255, 0]], np.uint8)
    picture = Image.fromarray(levels)
    if mode == "P":  # black is entry 1 and white entry 0: indices are not levels
        picture = Image.frombytes("P", (2, 2), (levels == 0).astype(np.uint8).tobytes())
        picture.putpalette([255, 255, 255, 0, 0, 0])
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == mode
    assert (read_mask(tmp_path / "a.png") > FOREGROUND).tolist() == [[False, True], [True, False]]


def test_threshold_is_strictly_above_128(tmp_path):
    Image.fromarray(np.array([[128, 129]], np.uint8)).save(tmp_path / "a.png")
    assert (read_mask(tmp_path / "a.png") > FOREGROUND).tolist() == [[False, True]]


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_coloured_mask_is_refused(tmp_path, mode):
    Image.new("RGB", (4, 4), (200, 0, 0)).convert(mode).save(tmp_path / "voc.png")
    with pytest.raises(DataFault, match=rf"voc\.png: a coloured mask \(mode {mode}\)"):
        read_mask(tmp_path / "voc.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_truncated_file(tmp_path, photo, truncate, suffix, read):
    path = truncate(photo(tmp_path / f"cut{suffix}", size=(40, 40)))
    with pytest.raises(DataFault, match=rf"cut\{suffix}: cannot be decoded: "):
        read(path)


def test_file_of_another_kind_and_absent_file(tmp_path):
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(DataFault, match=r"a\.jpg: cannot be decoded: not a picture"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataFault, match=r"b\.jpg: no such file"):
        read_image(tmp_path / "b.jpg")


def test_damaged_files_never_raise_anything_else(tmp_path, photo):
    """Bytes changed at random: each file is read or reported in one line."""
    random = np.random.default_rng(0)
    sources = [photo(tmp_path / f"source{suffix}").read_bytes() for suffix in SUFFIXES]
    reported = 0
    for trial in range(420):
        damaged = bytearray(sources[trial % len(sources)])
        for place in random.integers(0, len(damaged), 4):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged.png").write_bytes(damaged)
        try:
            assert read_image(tmp_path / "damaged.png").ndim == 3
        except DataFault as error:
            assert "damaged.png" in str(error) and "\n" not in str(error)
            reported += 1
    assert reported > 50


def test_pair_reports_both_files(tmp_path, photo, mask, truncate):
    image, truth = truncate(photo(tmp_path / "a.jpg")), truncate(mask(tmp_path / "a.png"))
    with pytest.raises(DataFault) as error:
        read_pair(image, truth)
    assert [fault.split(":")[0] for fault in error.value.faults] == [str(image), str(truth)]


def test_sizes_that_differ_are_named_width_first(tmp_path, photo, mask):
    image, truth = photo(tmp_path / "a.jpg", size=(12, 16)), mask(tmp_path / "a.png", size=(12, 15))
    with pytest.raises(DataFault, match=r"a\.jpg: the photo is 16x12 but its mask .*a\.png is 15x12$"):
        read_pair(image, truth)
    with pytest.raises(DataFault, match="EXIF"):
        check_same_size(image, np.zeros((3, 4, 3)), "its mask", (4, 3))


def test_read_all_keeps_every_fault_and_the_order_of_results():
    def fail(name):
        raise DataFault(f"{name}: bad", f"{name}: worse")

    assert read_all([lambda: 1, lambda: 2]) == [1, 2]
    with pytest.raises(DataFault) as error:
        read_all([lambda: fail("a"), lambda: 1, lambda: fail("b")])
    assert error.value.faults == ("a: bad", "a: worse", "b: bad", "b: worse")
    assert str(error.value) == "a: bad (and 3 more; `maskgym data check` lists them all)"


def test_fault_is_a_user_error_of_one_line_and_survives_pickling():
    fault = DataFault("a: two\nlines")
    assert isinstance(fault, UserError) and str(fault) == "a: two lines"
    assert pickle.loads(pickle.dumps(DataFault("a", "b"))).faults == ("a", "b")


def test_labels_are_the_values_of_the_file(tmp_path):
    pixels = np.array([[0, 1, 200]], np.uint8)
    palette = Image.frombytes("P", (3, 1), pixels.tobytes())
    palette.putpalette([9, 9, 9] * 256)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    Image.fromarray(pixels.astype(np.uint16) * 300).save(tmp_path / "grey16.png")
    Image.fromarray(np.array([[[0, 0, 0], [0, 0, 1], [1, 2, 3]]], np.uint8)).save(tmp_path / "colour.png")
    grey, opaque = Image.fromarray(pixels), Image.fromarray(pixels[:, ::-1].copy())
    Image.merge("LA", (grey, opaque)).save(tmp_path / "alpha.png")
    Image.fromarray(pixels > 0).save(tmp_path / "bit.png")
    read = {path.stem: read_labels(path).tolist() for path in tmp_path.iterdir()}
    assert read == {
        "palette": [[0, 1, 200]],
        "grey": [[0, 1, 200]],
        "grey16": [[0, 300, 60000]],
        "colour": [[0, 1, 65536 + 512 + 3]],
        "alpha": [[0, 1, 200]],
        "bit": [[0, 1, 1]],
    }
    assert read_labels(tmp_path / "palette.png", palette=True).tolist() == [[0, 1, 200]]
    with pytest.raises(DataFault, match=r"grey\.png: no palette \(mode L\)"):
        read_labels(tmp_path / "grey.png", palette=True)


@pytest.mark.parametrize("read", [read_labels, read_levels])
def test_values_that_count_are_not_read_from_a_jpeg(tmp_path, photo, read):
    photo(tmp_path / "a.jpg").rename(tmp_path / "a.png")
    with pytest.raises(DataFault, match=r"a\.png: a JPEG: expected values without loss"):
        read(tmp_path / "a.png")
    with pytest.raises(DataFault, match=r"b\.png: no such file"):
        read(tmp_path / "b.png")


def test_levels_are_grey_with_all_their_bits(tmp_path):
    pixels = np.array([[0, 7, 255]], np.uint8)
    palette = Image.frombytes("P", (3, 1), bytes([2, 1, 0]))
    palette.putpalette([255, 255, 255, 7, 7, 7, 0, 0, 0])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.stack([pixels] * 3, axis=2)).save(tmp_path / "colours.png")
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    for path in tmp_path.iterdir():
        assert read_levels(path).tolist() == [[0, 7, 255]]
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "grey.png")
    assert read_levels(tmp_path / "grey.png").tolist() == [[0, 7 * 257, 65535]]
    Image.new("RGB", (2, 2), (1, 1, 2)).save(tmp_path / "blue.png")
    with pytest.raises(DataFault, match=r"blue\.png: a coloured picture \(mode RGB\): expected grey levels"):
        read_levels(tmp_path / "blue.png")


SQUARE = np.pad(np.full((7, 7), 255, np.uint8), ((4, 5), (4, 5)))  # 49 of 256 pixels


@pytest.mark.parametrize("read", [read_mask, read_labels, read_levels])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_in_the_alpha_channel_is_refused(tmp_path, mode, read):
    white = Image.new(mode[:-1], (16, 16), "white")
    white.putalpha(Image.fromarray(SQUARE))
    white.save(tmp_path / "a.png")
    with pytest.raises(DataFault, match=r"a\.png: one colour and 2 levels of alpha"):
        read(tmp_path / "a.png")
    white.putpixel((0, 0), (254,) * (len(mode) - 1) + (0,))
    white.save(tmp_path / "a.png")
    if read is read_mask:
        with pytest.raises(DataFault, match=r"a\.png: one colour and 2 levels of alpha"):
            read(tmp_path / "a.png")
    else:  # values are labels or ranks
        assert len(np.unique(read(tmp_path / "a.png"))) == 2
    seen = Image.fromarray(SQUARE).convert(mode)
    seen.putalpha(Image.fromarray(SQUARE))
    seen.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png") > 128, SQUARE > 128)


@pytest.mark.parametrize("read", [read_mask, read_image])
def test_eight_bits_in_sixteen_are_not_read_as_black(tmp_path, read):
    Image.fromarray(SQUARE.astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataFault, match=r"a\.png: a (mask|photo) of 16 bits without a level above 255, read as black"):
        read(tmp_path / "a.png")
    Image.fromarray(SQUARE.astype(np.uint16) * 0).save(tmp_path / "a.png")
    assert not read(tmp_path / "a.png").any()


def test_a_camera_of_12_bits_is_not_read_as_near_black(tmp_path):
    for read, highest, fits in ((read_image, 4095, 4096), (read_mask, 32767, 65535)):
        Image.fromarray((SQUARE > 0).astype(np.uint16) * highest).save(tmp_path / "a.png")
        with pytest.raises(DataFault, match=f"of 16 bits without a level above {highest}, read as black"):
            read(tmp_path / "a.png")
        Image.fromarray((SQUARE > 0).astype(np.uint16) * fits).save(tmp_path / "a.png")
        assert read(tmp_path / "a.png").any()


@pytest.mark.parametrize(
    ("levels", "kind"),
    [
        (SQUARE, None),
        (SQUARE // 255, "of 2 levels (0, 1), perhaps of several classes"),
        (SQUARE | 255, "of one level: all foreground"),
        (SQUARE & 0, "of one level: no foreground"),
        (SQUARE.astype(np.uint16) * 257, "of 16 bits, read as 8"),
    ],
)
def test_what_is_unusual_about_a_mask_is_described(tmp_path, levels, kind):
    Image.fromarray(levels).save(tmp_path / "a.png")
    for predicted in (True, False):
        assert inspect_mask(tmp_path / "a.png", predicted)[1] == kind
    Image.fromarray(SQUARE.astype(np.uint16)).save(tmp_path / "a.png")
    assert "without a level above 255" in inspect_mask(tmp_path / "a.png", predicted=True)[1]


def test_only_formats_that_pillow_decodes_itself_are_tried(tmp_path, monkeypatch):
    """Pillow runs Ghostscript for a file that begins as EPS, whatever its name."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "e.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with pytest.raises(DataFault, match=r"e\.png: cannot be decoded: not a picture of a known format"):
        read_image(tmp_path / "e.png")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".webp", ".tif"])
def test_webp_and_tif_are_read(tmp_path, photo, suffix):
    path = photo(tmp_path / f"a{suffix}", value=90)
    assert abs(int(read_image(path)[0, 0, 0]) - 90) < 12 and is_picture(path.name)


def test_files_that_are_no_single_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    pages = [Image.fromarray(SQUARE)] * 2
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(SQUARE.astype(np.float32) / 255).save(tmp_path / "floats.tif")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, words in {
        "pipe.png": "not a regular file",
        "pages.tif": "2 frames: expected one picture",
        "floats.tif": "a (photo|mask|picture) of floats",
        "loop.png": "cannot be decoded: .*symbolic links",
    }.items():
        for read in (read_image, read_mask, read_labels):
            with pytest.raises(DataFault, match=f"{name}: {words}"):
                read(tmp_path / name)


def test_any_bit_of_a_png_that_is_flipped_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    pixels = (np.random.default_rng(0).random((6, 9)) > 0.5).astype(np.uint8) * 255
    Image.fromarray(pixels).save(path)
    sound = path.read_bytes()
    for place in range(8, len(sound) - 12):  # behind the signature, before the empty end
        for bit in range(8):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit]) + sound[place + 1 :])
            with pytest.raises(DataFault, match=r"a\.png: cannot be decoded"):
                read_mask(path)
    path.write_bytes(sound + b"more")
    assert (read_mask(path) == pixels).all()
