"""Mutations of data sets, each labelled harmful or harmless by its generator, with the names that must be told.

A mutation changes one file in the role that a reader gives it. The label follows from what is changed, never from the
code under test; where a picture is encoded anew, Pillow decides whether its pixels are the same.

Left out, because no file says that they are wrong: the masks of two photos of one size exchanged, an annotation moved
to another photo of the same size, a shorter list, runs of other lengths with the same sum and area, another label or
category that exists, a flipped byte in a JPEG or TIFF that still decodes, and a photo of another size where nothing
states its size (the objects of ASSR and IRSR). Left out too: JSON with one key twice, whose meaning JSON leaves open;
an absent category, which is None and refused by what needs it; and texts of numbers in place of numbers.
"""

from __future__ import annotations

import copy
import json
import pickle
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from random import Random
from typing import TypeVar

import numpy as np
from PIL import Image

from maskgym.benchmarks.fuzzing import layouts
from maskgym.benchmarks.fuzzing.layouts import Layout
from maskgym.benchmarks.fuzzing.trees import OUTSIDE, Folder, Link, Node, Pipe, Tree, decode, encode, indexed

DEEP = 100_000  # nested lists


@dataclass(frozen=True)
class Mutation:
    """A mutated data set.

    Attributes:
        tree: Its files.
        harmful: Whether it must be refused or noted; else it must change no value.
        names: Words of which one must be in what is told.
        reason: What was done.
    """

    tree: Tree
    harmful: bool
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Site:
    """A file to mutate: its path, its content, and the data set around it."""

    layout: Layout
    tree: Tree
    path: str

    @property
    def content(self) -> bytes:
        """Content of the file."""
        found = self.tree[self.path]
        assert isinstance(found, bytes)
        return found

    @property
    def stem(self) -> str:
        """Name of the file without suffix."""
        return PurePosixPath(self.path).stem

    @property
    def names(self) -> tuple[str, ...]:
        """Name of the file, and the note on a split that is told by the name of the file."""
        word = next((word for word in ("train", "test") if word in self.stem), "")
        own = self.path.endswith((".jpg", ".png")) or self.layout.roles.get(self.path) == "order"  # named by photo
        more = [self.stem] * own + ["no COCO-style JSON"] * self.path.endswith(".json")
        return PurePosixPath(self.path).name, *more, *([f"in split {word}"] if word else [])

    def harmful(self, node: Node | None, reason: str, *names: str) -> Mutation:
        """Replace the file, or remove it; the harm must be told by its name or one of the given ones."""
        return Mutation(self._with(node), True, (*self.names, *names), reason)

    def harmless(self, node: Node, reason: str) -> Mutation:
        """Replace the file without harm."""
        return Mutation(self._with(node), False, (), reason)

    def beside(self, name: str, node: Node) -> Tree:
        """Add a file to its folder."""
        return {**self.tree, str(PurePosixPath(self.path).with_name(name)): node}

    def _with(self, node: Node | None) -> Tree:
        others = {path: own for path, own in self.tree.items() if path != self.path}
        return others if node is None else {**others, self.path: node}


Mutator = Callable[[Random, Site], Mutation]


# --- Any file --------------------------------------------------------------------------------------------------------

GARBAGE = (
    *(b"", b"\n", b"\x00" * 64, b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\n"),
    *(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"P6\n9 9\n255\n" + bytes(243),
        b"\xff\xd8\xff\xe0",
        b"PK\x03\x04",
    ),
)


def garbage(random: Random, site: Site) -> Mutation:
    """Replace the content by that of another kind."""
    noise = random.randbytes(200)
    return site.harmful(random.choice((*GARBAGE, noise)), "content of another kind")


def truncated(random: Random, site: Site) -> Mutation:
    """Cut off at least three tenths of the file."""
    return site.harmful(site.content[: random.randrange(int(0.7 * len(site.content)))], "truncated")


def missing(random: Random, site: Site) -> Mutation:
    """Remove the file."""
    return site.harmful(None, "missing")


def not_a_file(random: Random, site: Site) -> Mutation:
    """Put a pipe, a folder, or a link to nothing, to itself or out of the data set in place of the file."""
    name = PurePosixPath(site.path).name
    nodes = {
        "a pipe": Pipe(),
        "a folder": Folder(),
        "a link to nothing": Link("nowhere"),
        "a link to itself": Link(name),
    }
    nodes |= {
        "a link out of the data set": Link(OUTSIDE + site.path),
        "a link to a system's file": Link("/etc/hostname"),
    }
    reason = random.choice(sorted(nodes))
    return site.harmful(nodes[reason], reason)


def blocked(random: Random, site: Site) -> Mutation:
    """Put a pipe, a folder, or a link to nothing in place of a file that the user names."""
    return site.harmful(
        random.choice((Pipe(), Folder(), Link("nowhere"), Link(PurePosixPath(site.path).name))), "no file"
    )


def linked_inside(random: Random, site: Site) -> Mutation:
    """Move the file to a hidden folder of the data set, and link to it."""
    up = "../" * site.path.count("/")
    moved = site.harmless(Link(f"{up}.store/{site.stem}"), "a link inside of the data set")
    return Mutation({**moved.tree, f".store/{site.stem}": site.content}, False, (), moved.reason)


STRAYS = (
    "Thumbs.db",
    ".DS_Store",
    "desktop.ini",
    "README.txt",
    "._own.png",
    ".hidden.jpg",
    "notes.md",
    "a\x1b[31m.txt",
)


def stray(random: Random, site: Site) -> Mutation:
    """Add a file that is no part of a data set, beside the file or at the root."""
    name, content = random.choice(STRAYS), random.randbytes(40)
    tree = site.beside(name, content) if random.random() < 0.5 else {**site.tree, name: content}
    return Mutation({**tree, "__MACOSX/._a": b"x"} if random.random() < 0.3 else tree, False, (), f"a stray {name!r}")


def written_again(random: Random, site: Site) -> Mutation:
    """Write the same files in another order."""
    paths = list(site.tree)
    random.shuffle(paths)
    return Mutation({path: site.tree[path] for path in paths}, False, (), "written in another order")


ANY_HARMFUL = (garbage, truncated, missing, not_a_file)
ANY_HARMLESS = (linked_inside, stray, written_again)


# --- Pictures --------------------------------------------------------------------------------------------------------


def flipped(random: Random, site: Site) -> Mutation:
    """Flip a bit of a PNG, which holds a checksum of each part."""
    content = bytearray(site.content if site.content.startswith(b"\x89PNG") else encode(decode(site.content)))
    content[random.randrange(8, len(content) - 12)] ^= 1 << random.randrange(8)  # behind the signature, before IEND
    return site.harmful(bytes(content), "a bit of a PNG is flipped")


def of_another_size(random: Random, site: Site) -> Mutation:
    """Cut or add rows or columns."""
    picture = decode(site.content)
    width, height = picture.size
    more = random.choice(((1, 0), (0, 1), (-1, 0), (0, -1), (width, height), (height - width, width - height)))
    return site.harmful(encode(picture.crop((0, 0, width + more[0], height + more[1]))), "of another size")


def frames(random: Random, site: Site) -> Mutation:
    """Make it an animation of two frames."""
    one, kind = decode(site.content).convert("RGB"), random.choice(("GIF", "TIFF", "PNG", "WEBP"))
    other = Image.eval(one, lambda level: 255 - level)
    return site.harmful(encode(one, kind, save_all=True, append_images=[other]), f"two frames of {kind}")


def floats(random: Random, site: Site) -> Mutation:
    """Make it a TIFF of floats."""
    return site.harmful(encode(decode(site.content).convert("L").convert("F"), "TIFF"), "floats")


def huge(random: Random, site: Site) -> Mutation:
    """State a size of 10 billion pixels, with a checksum that fits."""
    content = bytearray(encode(decode(site.content)))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    return site.harmful(bytes(content), "of 10 billion pixels")


def turned(random: Random, site: Site) -> Mutation:
    """State in EXIF that the picture lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = random.choice((5, 6, 7, 8))
    return site.harmful(encode(decode(site.content), exif=exif), "turned by EXIF")


def dim(random: Random, site: Site) -> Mutation:
    """Store the levels of 8 bits in 16 bits."""
    levels = np.asarray(decode(site.content).convert("L")).astype(np.uint16)
    levels.flat[0] = 200  # there is a level, so it is not black on purpose
    return site.harmful(encode(levels), "levels of 8 bits in 16 bits")


def encoded_again(random: Random, site: Site) -> Mutation:
    """Encode the same pixels without loss in another way."""
    picture = decode(site.content)
    exif = Image.Exif()
    exif[0x0112] = 1
    ways: dict[str, Callable[[], bytes]] = {
        "PNG without compression": lambda: encode(picture, compress_level=0),
        "PNG with most compression": lambda: encode(picture, compress_level=9, optimize=True),
        "PNG with EXIF": lambda: encode(picture, exif=exif),
        "TIFF": lambda: encode(picture, "TIFF", compression=random.choice((None, "tiff_lzw", "tiff_deflate"))),
        "BMP": lambda: encode(picture, "BMP"),
        "PNG and more": lambda: encode(picture) + b"trailing bytes",
    }
    way = random.choice(sorted(ways))
    return site.harmless(ways[way](), f"encoded as {way}")


def opaque(random: Random, site: Site) -> Mutation:
    """Add an opaque alpha channel."""
    picture = decode(site.content)
    return site.harmless(encode(picture.convert("RGBA" if picture.mode == "RGB" else "LA")), "an opaque alpha channel")


def hostile_stray(random: Random, site: Site) -> Mutation:
    """Add a picture without a partner, whose name is hard to print."""
    names = (
        "stray\x1b[2J.jpg",
        "stray\nline.jpg",
        "stray\u202egpj.jpg",
        "stray\udcff.jpg",
        "stray\x07.png",
        "strayX.jpg",
    )
    return Mutation(site.beside(random.choice(names), site.content), True, ("stray",), "a picture without a partner")


def twin(random: Random, site: Site) -> Mutation:
    """Add another picture of the same name with another suffix."""
    return Mutation(site.beside(site.stem + ".bmp", encode(decode(site.content), "BMP")), True, site.names, "a twin")


def unread_twin(random: Random, site: Site) -> Mutation:
    """Add another picture of the same name that nothing names."""
    return Mutation(twin(random, site).tree, False, (), "a twin that nothing names")


def other_case(random: Random, site: Site) -> Mutation:
    """Write the name in capitals."""
    moved = site.harmful(None, "its name in capitals", site.stem.upper())
    name = site.stem.upper() + PurePosixPath(site.path).suffix
    return Mutation(
        {**moved.tree, str(PurePosixPath(site.path).with_name(name)): site.content}, True, moved.names, moved.reason
    )


PHOTO_HARM = (garbage, truncated, missing, not_a_file, flipped, frames, floats, dim, huge)
PHOTO_CALM = (*ANY_HARMLESS, encoded_again, opaque)
SIZED = (of_another_size, turned)

# --- Masks -----------------------------------------------------------------------------------------------------------


def _levels(site: Site) -> np.ndarray:
    return np.asarray(decode(site.content).convert("L"))


def one_level(random: Random, site: Site) -> Mutation:
    """Make the mask black or white, or of levels that are none of a mask."""
    level = random.choice((0, 255, 1, 128))
    group = PurePosixPath(site.path).parent.name
    pixels = _levels(site) // 255 * level if level in (1, 128) else np.full_like(_levels(site), level)
    return site.harmful(encode(pixels), f"a mask of level {level}", group)


def soft(random: Random, site: Site) -> Mutation:
    """Give the mask levels between black and white."""
    pixels = _levels(site).copy()
    pixels[0] = np.linspace(0, 255, pixels.shape[1])
    return site.harmful(encode(pixels), "levels between black and white")


def several_levels(random: Random, site: Site) -> Mutation:
    """Give the mask one level per object, as a label map."""
    pixels = _levels(site).copy()
    pixels[:, pixels.shape[1] // 2 :] //= 2
    return site.harmful(encode(pixels), "a level per object")


def coloured(random: Random, site: Site) -> Mutation:
    """Colour the objects."""
    pixels = np.repeat(_levels(site)[..., None], 3, axis=2) * np.array([1, 0, 0], np.uint8)
    made = random.choice(
        (Image.fromarray(pixels), Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE))
    )
    return site.harmful(encode(made), "coloured")


def in_alpha(random: Random, site: Site) -> Mutation:
    """Move the mask to the alpha channel of one colour."""
    pixels = _levels(site)
    colour = random.choice((0, 255))
    shown = Image.merge("LA", (Image.fromarray(np.full_like(pixels, colour)), Image.fromarray(pixels)))
    return site.harmful(encode(shown.convert(random.choice(("LA", "RGBA")))), "the mask is in the alpha channel")


def same_mask(random: Random, site: Site) -> Mutation:
    """Store the same mask in another mode, or with another level above 128."""
    pixels = _levels(site)
    ways: dict[str, Callable[[], bytes]] = {
        "one bit": lambda: encode(Image.fromarray(pixels).convert("1")),
        "colours": lambda: encode(Image.fromarray(pixels).convert("RGB")),
        "a palette": lambda: encode(
            Image.fromarray(pixels).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        ),
        "16 bits": lambda: encode(pixels.astype(np.uint16) * 257),
        "level 200": lambda: encode(np.where(pixels > 128, 200, 0).astype(np.uint8)),
        "level 129": lambda: encode(np.where(pixels > 128, 129, 0).astype(np.uint8)),
        "grey and opaque": lambda: encode(Image.fromarray(pixels).convert("LA")),
    }
    way = random.choice(sorted(ways))
    return site.harmless(ways[way](), f"the same mask in {way}")


PICTURE_HARM = (garbage, truncated, missing, not_a_file, flipped, of_another_size, frames, floats, turned, huge)
MASK_HARM = (*PICTURE_HARM, one_level, soft, several_levels, coloured, in_alpha, dim, twin, other_case)
MASK_CALM = (*ANY_HARMLESS, encoded_again, same_mask)

# --- Label maps and classes ------------------------------------------------------------------------------------------


def _labels(site: Site) -> np.ndarray:
    return np.asarray(decode(site.content))


def lossy(random: Random, site: Site) -> Mutation:
    """Store labels with loss."""
    pixels = decode(site.content).convert("L")
    return site.harmful(encode(pixels, random.choice(("JPEG", "WEBP"))), "labels with loss")


def no_label(random: Random, site: Site) -> Mutation:
    """Remove all labels."""
    return site.harmful(encode(indexed(np.zeros_like(_labels(site)))), "no label")


def speck(random: Random, site: Site) -> Mutation:
    """Add a label of one pixel."""
    pixels = _labels(site).copy()
    pixels[-1, random.randrange(pixels.shape[1])] = 7
    return site.harmful(encode(indexed(pixels)), "a speck")


def labels_in_alpha(random: Random, site: Site) -> Mutation:
    """Move the labels to the alpha channel of one colour."""
    alpha = Image.fromarray(_labels(site) * 90)
    return site.harmful(
        encode(Image.merge("LA", (Image.new("L", alpha.size, 9), alpha))), "labels in the alpha channel"
    )


def same_labels(random: Random, site: Site) -> Mutation:
    """Store the same labels in another mode, or others in the same order."""
    pixels = _labels(site)
    ways: dict[str, Callable[[], bytes]] = {
        "grey": lambda: encode(pixels),
        "16 bits": lambda: encode(pixels.astype(np.uint16)),
        "another palette": lambda: encode(indexed(pixels, 11)),
        "blue": lambda: encode(np.stack([0 * pixels, 0 * pixels, pixels], axis=2)),
        "larger numbers": lambda: encode(indexed(pixels * 30)),
    }
    way = random.choice(sorted(ways))
    return site.harmless(ways[way](), f"the same labels in {way}")


def no_palette(random: Random, site: Site) -> Mutation:
    """Store indices as grey levels or colours."""
    return site.harmful(
        encode(random.choice((Image.fromarray(_labels(site)), decode(site.content).convert("RGB")))), "no palette"
    )


def no_class(random: Random, site: Site) -> Mutation:
    """Give pixels an index that is no class."""
    pixels = _labels(site).copy()
    pixels[-1, -1] = random.randrange(21, 255)
    return site.harmful(encode(indexed(pixels)), "an index that is no class")


def object_without_class(random: Random, site: Site) -> Mutation:
    """Add an object where there is no class."""
    pixels = _labels(site).copy()
    pixels[-2:, :3] = 9
    return site.harmful(encode(indexed(pixels)), "an object without a class")


def only_void(random: Random, site: Site) -> Mutation:
    """Leave background and void only."""
    pixels = np.where(_labels(site) == 255, 255, 0)
    return site.harmful(encode(indexed(pixels)), "nothing but background and void")


def another_palette(random: Random, site: Site) -> Mutation:
    """Change the colours of the palette."""
    return site.harmless(encode(indexed(_labels(site), random.randrange(1, 99))), "another palette")


def faint(random: Random, site: Site) -> Mutation:
    """Darken the picture until no object is left."""
    return site.harmful(encode(_labels(site) // random.choice((3, 200, 254))), "no object is left")


def same_greys(random: Random, site: Site) -> Mutation:
    """Store the same grey levels as colours, or at 16 bits."""
    pixels = _labels(site)
    made = random.choice((encode(np.repeat(pixels[..., None], 3, axis=2)), encode(pixels.astype(np.uint16))))
    return site.harmless(made, "the same levels in another mode")


# --- Lists -----------------------------------------------------------------------------------------------------------


def _split_word(site: Site) -> tuple[str, ...]:
    return next((word, site.stem) for word in ("train", "validation", "test") if word[:3] in site.stem)


ODD_LINES = (
    b"nobody",
    b"../../etc/passwd",
    b"/etc/passwd",
    b"a\x1b[31mb",
    b"\xff\xfe\xfa",
    b"\x00",
    b"x" * 5000,
    b"{}",
    b"a\xc2\x85b",
)


def odd_line(random: Random, site: Site) -> Mutation:
    """Add a line that names nothing."""
    return site.harmful(site.content + random.choice(ODD_LINES) + b"\n", "a line that names nothing")


def on_two_lists(random: Random, site: Site) -> Mutation:
    """Put the names of all other lists on this one too."""
    others = [own for path, own in site.tree.items() if site.layout.roles.get(path) == site.layout.roles[site.path]]
    whole = b"".join(own for own in others if isinstance(own, bytes))
    stems = [word for word in whole.decode().split() if word not in site.content.decode()]
    return site.harmful(whole, "names on two lists", *stems)


def list_gone(random: Random, site: Site) -> Mutation:
    """Remove the list, or put a pipe or folder in its place."""
    return site.harmful(
        random.choice((None, Pipe(), Folder(), b"")), "no list", *(f"split {word}" for word in _split_word(site))
    )


def same_list(random: Random, site: Site) -> Mutation:
    """Write the same list in another way."""
    text = site.content.decode()
    ways = {
        "a byte-order mark": text.encode("utf-8-sig"),
        "CRLF": text.replace("\n", "\r\n").encode(),
        "blank lines": ("\n  \n" + text + "\n\n").encode(),
        "UTF-16": text.encode("utf-16"),
        "no last line end": text.rstrip("\n").encode(),
        "suffixes": "".join(f"{line}.jpg\n" for line in text.split()).encode(),
        "blanks around names": "".join(f"  {line}\t\n" for line in text.split()).encode(),
    }
    if site.layout.roles[site.path] == "voc list":
        del ways["suffixes"]  # only names of photos are on these
    way = random.choice(sorted(ways))
    return site.harmless(ways[way], f"a list with {way}")


LIST_CALM = (stray, written_again, linked_inside, same_list)

# --- JSON ------------------------------------------------------------------------------------------------------------

Record = dict
Content = TypeVar("Content", dict, list)
WRONG: tuple[object, ...] = (None, True, -1, 2.5, float("nan"), float("inf"), "", "x", [], {}, [[]], {"a": 1}, [None])
ODD_NAMES = (
    *(
        "../picaq.jpg",
        "/picaq.jpg",
        "..\\..\\picaq.jpg",
        "a/../../picaq.jpg",
        "",
        ".",
        "/",
        "x" * 5000,
        "pic\x1b[31m.jpg",
    ),
    *("pic\nline.jpg", "\ud800.jpg", "pic\x00.jpg", "nothere.jpg", "~/picaq.jpg", "C:\\picaq.jpg", "picaq.jpg/"),
)


def _load(site: Site) -> dict:
    return json.loads(site.content)


def _dump(content: object) -> bytes:
    return json.dumps(content).encode()


def bad_json(random: Random, site: Site) -> Mutation:
    """Make text that is no JSON, or JSON of another form."""
    text = site.content.decode()
    texts = (
        *(
            "[" * DEEP,
            '{"a":' * DEEP,
            "{}",
            "[]",
            "null",
            "3",
            '"x"',
            "NaN",
            text[:-1],
            text + "}",
            text.replace(":", "=", 1),
        ),
        *(text.replace('"', "'"), "// comment\n" + text, text.replace("}", ",}", 1), "[" * DEEP + "]" * DEEP),
    )
    return site.harmful(random.choice(texts).encode(), "no JSON of this form", "JSON")


def bad_bytes(random: Random, site: Site) -> Mutation:
    """Put bytes into the JSON that are no text."""
    return site.harmful(
        site.content.replace(b'": "', b'": "' + random.choice((b"\xff", b"\xc3", b"\x00", b"\xed\xa0\x80")), 1),
        "bytes that are no text",
        "JSON",
    )


def lone_surrogate(random: Random, site: Site) -> Mutation:
    """Put half of a surrogate pair into a text."""
    return site.harmful(site.content.replace(b'": "', b'": "\\ud800', 1), "half of a surrogate pair")


def same_json(random: Random, site: Site) -> Mutation:
    """Write the same content in another way."""
    content = json.loads(site.content)
    ways: dict[str, Callable[[], bytes]] = {
        "indented": lambda: json.dumps(content, indent=2).encode(),
        "dense": lambda: json.dumps(content, separators=(",", ":")).encode(),
        "sorted": lambda: json.dumps(content, sort_keys=True).encode(),
        "shuffled": lambda: _dump(_shuffled(random, content)),
        "with further keys": lambda: _dump(_extended(content)),
        "with a byte-order mark": lambda: site.content.decode().encode("utf-8-sig"),
        "in UTF-16": lambda: site.content.decode().encode("utf-16"),
        "with blanks around": lambda: b" \r\n\t" + site.content + b"\n\n",
        "of floats": lambda: _dump(_as_floats(content)),
    }
    way = random.choice(sorted(ways))
    return site.harmless(ways[way](), f"JSON {way}")


def _shuffled(random: Random, content: object) -> object:
    if isinstance(content, dict):
        keys = list(content)
        random.shuffle(keys)
        return {key: _shuffled(random, content[key]) for key in keys}
    return [_shuffled(random, one) for one in content] if isinstance(content, list) else content


def _extended(content: object) -> object:
    if isinstance(content, dict):
        own = {key: _extended(value) for key, value in content.items()}
        return own if {"size", "counts"} <= own.keys() else {**own, "a further key": [None, {"x": 1.5}], "\x1b[31m": ""}
    return [_extended(one) for one in content] if isinstance(content, list) else content


FREE = ("segmentation", "bbox", "area", "rank_order", "iscrowd", "height", "width")  # keys that may hold floats


def _as_floats(content: object, key: str = "") -> object:
    """Write numbers that are no ids, sizes or runs as floats."""
    if isinstance(content, dict):
        return {own: _as_floats(value, own) for own, value in content.items()}
    if isinstance(content, list) and key not in ("size", "counts", "sent_ids"):
        return [_as_floats(one, key) for one in content]
    return float(content) if isinstance(content, int) and key in FREE and not isinstance(content, bool) else content


def _json_harm(change: Callable[[Random, Content], tuple[str, tuple[str, ...]]]) -> Mutator:
    """Make a mutator of a function that changes a content, and says what it did and the names that are told."""

    def mutate(random: Random, site: Site) -> Mutation:
        content = copy.deepcopy(json.loads(site.content))
        reason, names = change(random, content)
        return site.harmful(_dump(content), reason, *names)

    mutate.__name__ = change.__name__.lstrip("_")
    return mutate


def _pick(random: Random, records: list[Record]) -> tuple[int, Record]:
    place = random.randrange(len(records))
    return place, records[place]


def _names_of(place: int, annotation: Record) -> tuple[str, ...]:
    return f"annotation {annotation.get('id')}", f"annotations[{place}]"


WRONG_POLYGONS: tuple[object, ...] = (
    *([[1, 1, 5, 1]], [[1, 1, 5, 1, 5, 5, 1]], [[]], [], [[["a"] * 6]], [["a"] * 6], [[None] * 6], [[{}] * 6], [3, 4]),
    *(
        [[float("nan")] * 8],
        [[float("inf")] * 8],
        [[1e18] * 8],
        [[1, 1, 5, 1, 5, float("nan")]],
        [[-1e9, 0, 5, 0, 5, 5]],
        [[10**400] * 6],
    ),
    *(
        [[200, 200, 210, 200, 210, 210]],
        [[1, 1, 1, 1, 1, 1]],
        {"counts": "abc"},
        {"size": [12, 16]},
        {},
        "text",
        3,
        None,
        True,
    ),
)


def wrong_segmentation(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Replace a segmentation by one that is malformed or covers nothing."""
    place, own = _pick(random, content["annotations"])
    own["segmentation"] = value = random.choice(WRONG_POLYGONS)
    return f"segmentation {str(value)[:60]}", _names_of(place, own)


def wrong_runs(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Change the counts or the size of a run-length code."""
    coded = [(place, own) for place, own in enumerate(content["annotations"]) if isinstance(own["segmentation"], dict)]
    place, own = random.choice(coded)
    code = own["segmentation"]
    height, width = code["size"]
    counts: list[object]
    if isinstance(code["counts"], str):
        counts = [code["counts"] + "0", code["counts"][:-1], "", "~~~", "\u00e9", "0" * 9999, code["counts"] + "o", 5]
    else:
        more = [value + (k == 0) for k, value in enumerate(code["counts"])]
        less = code["counts"][:-1]
        floats = [float(value) for value in code["counts"]]
        counts = [
            more,
            less,
            [*code["counts"], 5],
            [-1, *code["counts"]],
            floats,
            [],
            [height * width],
            [None],
            [10**30],
            [[1]],
        ]
    change = random.choice(("counts", "counts", "counts", "size"))
    sizes = [
        [width, height],
        [height, width + 1],
        [0, 0],
        [-1, -1],
        [height],
        [height, width, 1],
        "12",
        None,
        [1e9, 1e9],
    ]
    code[change] = random.choice(sizes if change == "size" else [*counts, None, {}, True])
    return f"{change} {str(code[change])[:60]}", _names_of(place, own)


def wrong_flag(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Give an annotation a flag that is neither 0 nor 1."""
    place, own = _pick(random, content["annotations"])
    flag = random.choice(("iscrowd", "salient"))
    own[flag] = random.choice((2, -1, 0.5, "0", "yes", [], {}, float("nan"), 10**30))
    return f"{flag} {own[flag]}", _names_of(place, own)


def crowd(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Call an annotation a crowd."""
    _pick(random, content["annotations"])[1]["iscrowd"] = random.choice((1, True, 1.0))
    return "a crowd", ("crowds",)


def not_salient(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Call an annotation not salient."""
    _pick(random, content["annotations"])[1]["salient"] = random.choice((0, False))
    return "not salient", ('"salient": false',)


def of_unknown_image(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Give an annotation an image that is none, or an id of another type."""
    place, own = _pick(random, content["annotations"])
    known = own["image_id"]
    own["image_id"] = random.choice((77, str(known), -known, known + 0.5, None, [known], 10**30, "\x1b[31m", {}))
    return f"image_id {own['image_id']!r}", _names_of(place, own)


def without_field(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Remove a required field of an annotation or an image."""
    part, fields = random.choice((("annotations", ("image_id", "segmentation")), ("images", ("id", "file_name"))))
    place, own = _pick(random, content[part])
    field = random.choice(fields)
    del own[field]
    return f"no {field}", (f"{part}[{place}]",)


def other_box(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Exchange the boxes of the two annotations of an image, as exchanged ids do."""
    place = 2 * random.randrange(len(content["annotations"]) // 2)
    one, other = content["annotations"][place : place + 2]
    one["bbox"], other["bbox"] = other["bbox"], one["bbox"]
    return "boxes exchanged", (*_names_of(place, one), *_names_of(place + 1, other))


def other_area(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """State an area that is far from the mask's."""
    place, own = _pick(random, content["annotations"])
    own["area"] *= random.choice((10, 0.05, 1e6))
    return f"area {own['area']}", _names_of(place, own)


def twice(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """List an annotation twice, or two by one id."""
    place, own = _pick(random, content["annotations"])
    if random.random() < 0.5:
        content["annotations"].append(dict(own))
    else:
        other = content["annotations"][place - 1]
        other["id"] = own["id"]
    return "two annotations of one id", _names_of(place, own)


def wrong_image(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Give an image a wrong id or file name."""
    place, own = _pick(random, content["images"])
    field = random.choice(("id", "file_name", "file_name"))
    named = (own["file_name"].removesuffix(".jpg"), f"images[{place}]")
    if field == "id":
        own["id"] = random.choice((99, content["images"][place - 1]["id"], None, [], 1.5, "x", 10**30))
        return f"image id {own['id']}", (*named, "which is not in images", "two images have the id")
    own["file_name"] = random.choice((*ODD_NAMES, *WRONG))
    return f"file_name {str(own['file_name'])[:60]!r}", (*named, "file_name", "no file", "surrogate")


def wrong_size(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """State another size of an image."""
    _, own = _pick(random, content["images"])
    side = random.choice(("height", "width"))
    own[side] = random.choice(
        (
            own[side] + 1,
            -own[side],
            own[side] * 2,
            str(own[side]),
            [own[side]],
            own[side] + 0.5,
            float("nan"),
            float("inf"),
            {"a": 1},
            10**30,
        )
    )
    return f"{side} {own[side]}", (own["file_name"],)


def sides_exchanged(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Exchange height and width of an image."""
    _, own = _pick(random, content["images"])
    own["height"], own["width"] = own["width"], own["height"]
    return "height and width exchanged", (own["file_name"],)


def image_twice(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """List a file twice, with another id or the same."""
    _, own = _pick(random, content["images"])
    content["images"].append({**own, "id": random.choice((own["id"], 88))})
    return "an image twice", (own["file_name"].removesuffix(".jpg"), f"id {own['id']}")


def image_gone(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Remove an image, or all its annotations."""
    place, own = _pick(random, content["images"])
    if random.random() < 0.5:
        del content["images"][place]
        return "an image is gone", (f"image {own['id']}",)
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != own["id"]]
    return "no annotation of an image", (own["file_name"].removesuffix(".jpg"),)


def wrong_part(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Remove a part, or give it or one of its records another type."""
    part = random.choice(("images", "annotations"))
    if random.random() < 0.5:
        content[part] = random.choice((None, {}, "x", 3, [3], [None], ["x"], [[]]))
    else:
        del content[part]
    return f"{part} {str(content.get(part))[:20]}", (part,)


def wrong_needs(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Give an annotation needs that are no list of texts."""
    place, own = _pick(random, content["annotations"])
    own["needs"] = random.choice(("find it", 3, [None], [3], [["a"]], {"a": 1}, True, ["a", 1.5], 10**30))
    return f"needs {own['needs']}", _names_of(place, own)


def without_needs(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Remove the needs of an image."""
    _, image = _pick(random, content["images"])
    for own in content["annotations"]:
        if own["image_id"] == image["id"]:
            own["needs"] = random.choice(([], None))
    return "no needs", (image["file_name"].removesuffix(".jpg"),)


def same_coco(random: Random, site: Site) -> Mutation:
    """Change what no reader uses, or what means the same."""
    content = _load(site)

    def interleaved() -> None:
        content["annotations"] = content["annotations"][::2] + content["annotations"][1::2]

    def without(part: str, *fields: str) -> None:
        for own in content[part]:
            for field in fields:
                own.pop(field, None)

    ways: dict[str, Callable[[], object]] = {
        "annotations in another order": interleaved,
        "no sizes": lambda: without("images", "height", "width"),
        "no boxes": lambda: without("annotations", "bbox"),
        "no areas": lambda: without("annotations", "area"),
        "no flags": lambda: without("annotations", "iscrowd", "salient"),
        "categories in another order": lambda: content["categories"].reverse(),
        "further parts": lambda: content.update(info={"year": 2020}, licenses=[]),
        "flags as truth values": lambda: [own.update(iscrowd=False, salient=1) for own in content["annotations"]],
        "other types of what is not used": lambda: [
            own.update(license=[], date="x", ignore=None) for own in content["images"]
        ],
    }
    way = random.choice(sorted(ways))
    ways[way]()
    return site.harmless(_dump(content), way)


def same_needs(random: Random, site: Site) -> Mutation:
    """Write needs with other spaces, or a later mention in other case."""
    content = _load(site)
    for place, own in enumerate(content["annotations"]):
        own["needs"] = [
            f"  {text}\n" if place % 2 == 0 else f" {text.upper()} " if text.startswith("both") else text
            for text in own["needs"]
        ]
    return site.harmless(_dump(content), "needs with other spaces and case")


TEXT_HARM = (*ANY_HARMFUL, bad_json, bad_bytes, lone_surrogate)
TEXT_CALM = (*ANY_HARMLESS, same_json)
INSTANCES_HARM = (
    *TEXT_HARM,
    *map(_json_harm, (wrong_segmentation, wrong_runs, wrong_segmentation, wrong_runs, of_unknown_image, without_field)),
    *map(_json_harm, (other_box, other_area, twice, wrong_image, wrong_size, sides_exchanged, image_gone, wrong_part)),
)
COCO_HARM = (*INSTANCES_HARM, *map(_json_harm, (wrong_flag, image_twice, wrong_image)))


# --- Ranks -----------------------------------------------------------------------------------------------------------


def wrong_order(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Give a photo ranks of another number or type."""
    content["rank_order"] = random.choice(
        (
            [0.9],
            [0.9, 1, 0.8],
            [],
            None,
            "x",
            [None, 1],
            [float("nan"), 1],
            [float("inf"), 1],
            ["1", "2"],
            {},
            [[1], [2]],
            [1e301, 1],
        )
    )
    return f"rank_order {content['rank_order']}", ("rank_order",)


def not_ranked(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Leave a photo without a salient object."""
    content["rank_order"] = [0.5, 0.0]
    return "no salient object", ()


def wrong_objects(random: Random, content: list) -> tuple[str, tuple[str, ...]]:
    """Change a photo's objects."""
    place, own = _pick(random, content)
    name = own["img"]
    kind = random.randrange(6)
    if kind == 0:
        own["img"] = random.choice((None, [], 1.5, "nobody", {}))
    elif kind == 1:
        own["object_data"] = random.choice((None, {}, "x", [None], [3], [{}], [{"bbox": []}]))
    elif kind == 2:
        own["object_data"].append(own["object_data"][0])
    elif kind == 3:
        own["object_data"].pop()
    elif kind == 4:
        content.append(dict(own))
    else:
        value = random.choice([value for value in WRONG_POLYGONS if value is not None])
        own["object_data"][random.randrange(2)]["segmentation"] = value
    return f"objects, kind {kind}", (name, f"[{place}]")


def wrong_grefs(random: Random, content: list) -> tuple[str, tuple[str, ...]]:
    """Change a record of gRefCOCO."""
    place, own = _pick(random, content)
    kind = random.randrange(4)
    if kind == 0:
        own["ann_id"] = random.choice((None, 7, [], [None], [107, -1], ["107"], [[107]], [True], [999], {}))
    elif kind == 1:
        own["image_id"] = random.choice((None, 999, "1", []))
    elif kind == 2:
        own["sentences"] = random.choice((None, {}, [None], [{}], [{"sent": 3, "sent_id": 1}], own["sentences"][:1]))
    else:
        content.append(copy.deepcopy(own))
    return f"an expression, kind {kind}", (f"[{place}]", f"[{len(content) - 1}]")


def wrong_reasoning(random: Random, content: Record) -> tuple[str, tuple[str, ...]]:
    """Change the texts or a polygon of a photo of ReasonSeg."""
    kind, shape = random.randrange(4), content["shapes"][0]
    if kind == 0:
        content["text"] = random.choice((None, "x", [], [""], [3], {}, ["a", None]))
    elif kind == 1:
        content["shapes"] = random.choice((None, {}, "x", [3], [[]], [{}], [{"label": 3}], [{"label": "target"}]))
    elif kind == 2:
        shape["points"] = random.choice((None, "x", [], shape["points"][:2], [*shape["points"], [1]], [[1, 2, 3]] * 4))
    else:
        shape["points"][1] = random.choice(([None, 1], ["1", 2], [1e300, 1], [float("nan"), 1], [True, 1], 5, {}))
    return f"reasoning, kind {kind}", (".json",)


# --- Pickles ---------------------------------------------------------------------------------------------------------


class _Command:
    """Pickled, it runs a command when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("[][0]",)


def bad_pickle(random: Random, site: Site) -> Mutation:
    """Write a pickle that requests code, or is none of a list of records."""
    records = pickle.loads(site.content)
    contents = (
        *(
            pickle.dumps([_Command()]),
            pickle.dumps([*records, _Command()]),
            pickle.dumps({}),
            pickle.dumps(3),
            pickle.dumps("x"),
        ),
        *(
            b"cos\nsystem\n(S'true'\ntR.",
            b"(" * 50_000,
            b"(lp0\n" * 30_000 + b".",
            b"cbuiltins\neval\n.",
            b"\x80\xff.",
            b"r\xff\xff\xff\x7f.",
        ),
        *(
            pickle.dumps([None]),
            pickle.dumps([[]]),
            pickle.dumps([{}]),
            pickle.dumps([np.zeros(3)]),
            pickle.dumps([{1, 2}]),
        ),
    )
    return site.harmful(random.choice(contents), "a pickle of another kind", "[0]")


def same_pickle(random: Random, site: Site) -> Mutation:
    """Write the same records by another protocol, with further keys or in another order of keys."""
    records = pickle.loads(site.content)
    changed = random.choice(
        (records, [_shuffled(random, one) for one in records], [{**one, "further": None} for one in records])
    )
    return site.harmless(pickle.dumps(changed, protocol=random.choice((0, 1, 2, 3, 4))), "the same records")


def wrong_refs(random: Random, site: Site) -> Mutation:
    """Change a record of expressions."""
    records = pickle.loads(site.content)
    place, own = _pick(random, records)
    names = (f"[{place}]", f"[{place - 1}]", f"[{len(records)}]")
    kind = random.choice(("field", "ann_id", "image_id", "split", "sent_ids", "sentence", "twice", "text"))
    if kind == "field":
        field = random.choice(("ref_id", "ann_id", "image_id", "split", "sentences"))
        own[field] = random.choice((None, 1.5, [None], {}, ["x"]))
    elif kind in ("ann_id", "image_id"):
        own[kind] = random.choice((-1, 999, own[kind] + (100 if kind == "ann_id" and own["image_id"] == 1 else 999)))
    elif kind == "split":
        own["split"] = random.choice(("Train", "", "x\x1b[31m", "minival", "y" * 3000))
    elif kind == "sent_ids":
        own["sent_ids"] = random.choice((own["sent_ids"][:1], [*own["sent_ids"], 9], [1, 2], "x", {}, [None, None]))
    elif kind == "sentence":
        own["sentences"][0] = random.choice((None, {}, {"sent": 3, "sent_id": 1}, {"sent": "a"}, [], "x"))
    elif kind == "twice":
        records.append(copy.deepcopy(own))
    else:
        own["sentences"][0]["sent"] = "half \ud800"
    try:
        made = pickle.dumps(records, protocol=2)
    except UnicodeEncodeError:  # pickle writes texts with "surrogatepass"
        raise AssertionError from None
    return site.harmful(made, f"a record with wrong {kind}", *names)


def wrong_ranked(random: Random, site: Site) -> Mutation:
    """Change a record of ranked objects."""
    records = pickle.loads(site.content)
    place, own = _pick(random, records)
    stem = PurePosixPath(own["file_name"]).stem
    kind = random.choice(("file_name", "annotations", "rank", "rank", "segmentation", "twice"))
    if kind == "file_name":
        own[kind] = random.choice((None, 3, "", "nobody.jpg", [], "x\x1b[31m.jpg"))
    elif kind == "annotations":
        own[kind] = random.choice((None, {}, [3], [{}], own[kind][:1], own[kind] * 2))
    elif kind == "rank":
        own[kind] = random.choice(
            (None, [1], [1, 2, 3], ["1", "2"], [float("nan"), 1], [float("inf"), 1], 3, [None, 1])
        )
    elif kind == "segmentation":
        own["annotations"][0][kind] = random.choice([value for value in WRONG_POLYGONS if value is not None])
    else:
        records.append(copy.deepcopy(own))
    return site.harmful(
        pickle.dumps(records), f"a record with wrong {kind}", stem, f"[{place}]", f"[{len(records) - 1}]"
    )


# --- Lines of JSON ---------------------------------------------------------------------------------------------------


def _rows(site: Site) -> list[Record]:
    return [json.loads(line) for line in site.content.splitlines()]


def _lines(rows: list[Record]) -> bytes:
    return b"".join(_dump(row) + b"\n" for row in rows)


def same_lines(random: Random, site: Site) -> Mutation:
    """Write the same rows in another way."""
    rows = _rows(site)
    ways: dict[str, Callable[[], bytes]] = {
        "in another order": lambda: _lines(random.sample(rows, len(rows))),
        "with shuffled keys": lambda: _lines([_shuffled(random, row) for row in rows]),  # type: ignore[misc]
        "with further keys": lambda: _lines([{**row, "further": {"a": [1]}} for row in rows]),
        "with blank lines": lambda: b"\n\n" + site.content.replace(b"\n", b"\n \n"),
        "with CRLF": lambda: site.content.replace(b"\n", b"\r\n"),
        "without the last line end": lambda: site.content.rstrip(b"\n"),
        "and rows of others": lambda: site.content + _lines([{**rows[0], "key": "of nobody"}]),
    }
    way = random.choice(sorted(ways))
    return site.harmless(ways[way](), f"lines {way}")


def _line_harm(site: Site, rows: list[Record], place: int, reason: str, *names: str) -> Mutation:
    return site.harmful(_lines(rows), reason, f"line {place + 1}", *names)


def wrong_rationale(random: Random, site: Site) -> Mutation:
    """Change a row of rationales."""
    rows = _rows(site)
    place, own = _pick(random, rows)
    key = own["key"]
    kind = random.choice(("field", "field", "twice", "gone", "images", "text"))
    if kind == "field":
        own[random.choice(("key", "task", "rationale"))] = random.choice(
            (*(one for one in WRONG if one != "x"), 10**30)
        )
    elif kind == "twice":
        rows.append(dict(own))
        place = len(rows) - 1
    elif kind == "gone":
        del rows[place]
    elif kind == "images":
        own["images"] = random.choice(([], [0, 1], [0] * 9))
    else:
        own["rationale"] = "<think>\ud800</think>"
    return _line_harm(site, rows, place, f"a row with wrong {kind}", key)


def wrong_line(random: Random, site: Site) -> Mutation:
    """Write a line that is no row."""
    lines = site.content.splitlines()
    place = random.randrange(len(lines))
    lines[place] = random.choice(
        (b"{", b"[1]", b"3", b"null", b"[" * DEEP, lines[place][:-5], b"\xff\xfe", b"NaN", lines[place] * 2)
    )
    return site.harmful(b"\n".join(lines), "a line that is no row", f"line {place + 1}")


def wrong_instances(random: Random, site: Site) -> Mutation:
    """Change a row of predicted instances."""
    rows = _rows(site)
    place, own = _pick(random, rows)
    key, nan = own["key"], float("nan")
    kind = random.choice(("key", "masks", "counts", "scores", "scores", "twice", "gone", "empty"))
    if kind == "key":
        own["key"] = random.choice((None, 3, [], {}, "nobody", key.upper(), ""))
    elif kind == "masks":
        own["masks"] = random.choice((None, {}, "x", [3], [None], [{}], [[1]], 3, ["x"]))
    elif kind == "counts":
        counts = own["masks"][0]["counts"]
        own["masks"][0]["counts"] = random.choice(
            (counts + "0", counts[:-1], "", "~", None, 3, [3], [-1, 5], [2.5], {})
        )
    elif kind == "scores":
        own["scores"] = random.choice(
            (
                [0.5],
                [0.5] * 3,
                [nan, 0.5],
                [float("inf"), 0.5],
                [10**400, 1],
                ["a", "b"],
                "x",
                {},
                [None, 1],
                [[1], [2]],
            )
        )
    elif kind == "twice":
        rows.append(dict(own))
        place = len(rows) - 1
    elif kind == "gone":
        del rows[place]
    else:
        own["masks"], own["scores"] = [], []
    return _line_harm(site, rows, place, f"a row with wrong {kind}", key)


def no_lines(random: Random, site: Site) -> Mutation:
    """Remove the file, or put a pipe or a folder in its place."""
    return site.harmful(random.choice((None, Pipe(), Folder())), "no lines", "predicted: no picture in it")


# --- Predicted pictures ----------------------------------------------------------------------------------------------


def added(random: Random, site: Site) -> Mutation:
    """Add a picture of nobody."""
    names = ("stray.png", "stray\x1b[2J.png", "stray\nline.png", "stray\u202e.png")
    return Mutation(site.beside(random.choice(names), site.content), True, ("stray",), "a prediction of nobody")


def constant(random: Random, site: Site) -> Mutation:
    """Predict one level."""
    return site.harmful(encode(np.full_like(_levels(site), random.choice((0, 255, 90)))), "a map of one level")


def few_levels(random: Random, site: Site) -> Mutation:
    """Predict a few levels, as of classes."""
    return site.harmful(encode((_levels(site) // 90 * 7).astype(np.uint8)), "a map of a few levels")


def soft_in_alpha(random: Random, site: Site) -> Mutation:
    """Move a map to the alpha channel of one colour."""
    pixels = Image.fromarray(_levels(site))
    return site.harmful(
        encode(Image.merge("LA", (Image.new("L", pixels.size, 255), pixels))), "a map in the alpha channel"
    )


def same_map(random: Random, site: Site) -> Mutation:
    """Store the same levels in another mode."""
    pixels = Image.fromarray(_levels(site))
    made = random.choice((pixels.convert("RGB"), pixels.convert("LA"), pixels.convert("P"), pixels))
    return site.harmless(encode(made), f"the same levels as {made.mode}")


def same_ranks(random: Random, site: Site) -> Mutation:
    """Store the same levels of ranks in another mode."""
    pixels = Image.fromarray(_labels(site))
    return site.harmless(encode(random.choice((pixels.convert("RGB"), pixels.convert("LA")))), "the same levels")


# `maskgym evaluate` follows the links of a user's own predictions, so these are no mutations.
PREDICTED_HARM = (garbage, truncated, missing, flipped, huge, frames, floats, twin, other_case, added)
PREDICTED_CALM = (written_again, encoded_again, same_map)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def wrong_hf_row(random: Random, site: Site) -> Mutation:
    """Change a value of a row."""
    rows = copy.deepcopy(layouts.hf_rows())
    place, own = _pick(random, rows)
    key, nan = own["key"], float("nan")
    kind = random.choice(("key", "image", "image", "mask", "mask", "phrases", "ranks", "ranks", "void", "path"))
    if kind == "key":
        own["key"] = rows[place - 1]["key"]
        key = own["key"]
    elif kind in ("phrases", "ranks"):
        wrong: list[object] = [own[kind][:1], own[kind] * 2, []]
        own[kind] = random.choice(
            wrong + ([[nan, 1.0], [float("inf"), 1.0], [-float("inf"), nan]] if kind == "ranks" else [])
        )
    elif kind == "path":
        paths = (
            "/etc/hostname",
            "../../x.png",
            "nowhere.png",
            "/dev/null",
            "a\x1b[31m.png",
            "http://127.0.0.1:9/x.png",
        )
        own["image"] = {"bytes": None, "path": random.choice(paths)}
    elif kind == "mask":
        choices: list[object] = [
            [],
            None,
            [own["mask"][0], {"bytes": b"x", "path": None}],
            [{"bytes": b"", "path": None}],
        ]
        own["mask"] = random.choice([*choices, [_changed(random, own["mask"][0], MASK_ROWS), own["mask"][1]]])
    else:
        own[kind] = random.choice(
            [_changed(random, own[kind], PHOTO_ROWS if kind == "image" else SIZED), {"bytes": b"x", "path": None}]
        )
    return Mutation(layouts.hf_tree(rows, plain=kind == "path"), True, (key,), f"a row with wrong {kind}")


MASK_ROWS: tuple[Mutator, ...] = (flipped, of_another_size, frames, floats, in_alpha, coloured, turned, truncated)
PHOTO_ROWS: tuple[Mutator, ...] = (flipped, of_another_size, frames, floats, truncated, turned, dim)


def _changed(random: Random, picture: Record, mutators: tuple[Mutator, ...]) -> Record:
    """Mutate the bytes of a picture in a row."""
    site = Site(layouts.Layout("", "", dict, {}), {"x.png": picture["bytes"]}, "x.png")
    return {**picture, "bytes": random.choice(mutators)(random, site).tree["x.png"]}


def same_hf_rows(random: Random, site: Site) -> Mutation:
    """Store the pictures of the rows in another way, without loss."""
    rows = copy.deepcopy(layouts.hf_rows())
    for own in rows:
        own["image"] = _changed(random, own["image"], (encoded_again, opaque))
        own["mask"] = [_changed(random, one, (encoded_again, same_mask)) for one in own["mask"]]
    return Mutation(layouts.hf_tree(rows), False, (), "pictures encoded anew")


def bad_state(random: Random, site: Site) -> Mutation:
    """Damage a file that describes the data set."""
    texts = ["", "{", "[]", "null", "3", '"x"', "[" * DEEP, site.content.decode()[:-9]]
    texts += ["{}", '{"_data_files": 3}'] if site.path == "state.json" else []  # an empty description is one
    return site.harmful(random.choice(texts).encode(), "a damaged description", "data.path")


def hf_rows_cut(random: Random, site: Site) -> Mutation:
    """Cut or remove the file of the rows."""
    cut = random.choice(
        (None, b"", site.content[: random.randrange(int(0.7 * len(site.content)))], random.randbytes(300))
    )
    return site.harmful(cut, "rows are cut off", "data.path")


# --- Tables ----------------------------------------------------------------------------------------------------------

HARMFUL: Mapping[str, tuple[Mutator, ...]] = {
    "photo": (*PHOTO_HARM, *SIZED, hostile_stray, twin, other_case),
    "named photo": (*PHOTO_HARM, *SIZED, other_case),
    "listed photo": (*PHOTO_HARM, *SIZED),
    "unsized photo": (*PHOTO_HARM, other_case),
    "mask": MASK_HARM,
    "labels": (*PICTURE_HARM, lossy, no_label, speck, labels_in_alpha),
    "classes": (*PICTURE_HARM, lossy, no_label, no_palette, no_class, only_void),
    "objects": (*PICTURE_HARM, lossy, no_label, no_palette, object_without_class, only_void),
    "grey": (*PICTURE_HARM, lossy, faint, coloured, in_alpha, speck),
    "list": (odd_line, on_two_lists, list_gone),
    "voc list": (odd_line, on_two_lists, list_gone),
    "name list": (odd_line,),
    "coco": (*COCO_HARM, _json_harm(crowd), _json_harm(not_salient)),
    "needs": (*COCO_HARM, _json_harm(crowd), _json_harm(wrong_needs), _json_harm(without_needs)),
    "instances": INSTANCES_HARM,
    "refs": (*ANY_HARMFUL, bad_pickle, wrong_refs, wrong_refs, wrong_refs),
    "grefs": (*ANY_HARMFUL, bad_json, *[_json_harm(wrong_grefs)] * 4),
    "reasoning": (*ANY_HARMFUL, *[_json_harm(wrong_reasoning)] * 4),
    "order": (*ANY_HARMFUL, bad_json, _json_harm(wrong_order), _json_harm(wrong_order), _json_harm(not_ranked)),
    "ranked objects": (*ANY_HARMFUL, bad_json, bad_bytes, *[_json_harm(wrong_objects)] * 6),
    "ranked pickle": (*ANY_HARMFUL, bad_pickle, *[wrong_ranked] * 6),
    "rows": (hf_rows_cut, *[wrong_hf_row] * 9),
    "state": (bad_state,),
    "rationales": (garbage, truncated, missing, blocked, *[wrong_line] * 2, *[wrong_rationale] * 6),
    "predicted map": (*PREDICTED_HARM, of_another_size, coloured, soft_in_alpha, constant, few_levels),
    "predicted labels": (*PREDICTED_HARM, lossy, no_label, labels_in_alpha),
    "predicted ranks": (*PREDICTED_HARM, of_another_size, lossy, coloured, in_alpha),
    "lines": (garbage, no_lines, *[wrong_line] * 3, *[wrong_instances] * 8),
}
HARMLESS: Mapping[str, tuple[Mutator, ...]] = {
    "photo": PHOTO_CALM,
    "named photo": (*PHOTO_CALM, unread_twin),
    "listed photo": PHOTO_CALM,
    "unsized photo": PHOTO_CALM,
    "mask": MASK_CALM,
    "labels": (*ANY_HARMLESS, encoded_again, same_labels),
    "classes": (*ANY_HARMLESS, another_palette),
    "objects": (*ANY_HARMLESS, another_palette),
    "grey": (*ANY_HARMLESS, encoded_again, same_greys),
    "list": LIST_CALM,
    "voc list": LIST_CALM,
    "name list": LIST_CALM,
    "coco": (*TEXT_CALM, same_coco, same_coco),
    "needs": (*TEXT_CALM, same_coco, same_needs),
    "instances": (*TEXT_CALM, same_coco),
    "refs": (*ANY_HARMLESS, same_pickle, same_pickle),
    "grefs": TEXT_CALM,
    "reasoning": TEXT_CALM,
    "order": TEXT_CALM,
    "ranked objects": TEXT_CALM,
    "ranked pickle": (*ANY_HARMLESS, same_pickle, same_pickle),
    "rows": (written_again, same_hf_rows),
    "state": (written_again,),
    "rationales": (stray, written_again, same_lines, same_lines),
    "predicted map": PREDICTED_CALM,
    "predicted labels": (written_again, encoded_again, same_labels),
    "predicted ranks": (written_again, encoded_again, same_ranks),
    "lines": (written_again, same_lines, same_lines),
}


def mutate(random: Random, layout: Layout, tree: Tree, harmful: bool) -> Mutation:
    """Draw a mutation of a data set: first the role, then the file, then what happens to it."""
    role = random.choice(sorted(set(layout.roles.values())))
    path = random.choice([path for path, own in layout.roles.items() if own == role])
    return random.choice((HARMFUL if harmful else HARMLESS)[role])(random, Site(layout, tree, path))
