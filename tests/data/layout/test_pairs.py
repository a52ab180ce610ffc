from __future__ import annotations

import os

import pytest

from maskgym.data.layout.images import DataFault
from maskgym.data.layout.listing import Listing
from maskgym.data.layout.names import find_home
from maskgym.data.layout.pairs import absence, find_pairs, link_fault, list_pictures
from maskgym.data.readers.folder import Folder


def pairs_and_faults(root, *folders):
    listing = Listing(root)
    return find_pairs(listing, *folders), listing.faults


@pytest.fixture
def root(tmp_path, photo, mask):
    folder = tmp_path / "set"
    photo(folder / "images" / "a.jpg")
    mask(folder / "masks" / "a.png")
    return folder


def test_links_to_files_and_folders_outside_are_faults(root, tmp_path, photo, mask):
    photo(tmp_path / "elsewhere" / "b.jpg")
    (root / "images" / "b.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    (root / "images" / "more").symlink_to(tmp_path / "elsewhere")
    mask(root / "masks" / "b.png")
    folder = Folder(root, split="all", strict=False)
    assert folder.keys == ("a",)
    assert [fault.split(": a link to ")[0] for fault in folder.faults[:2]] == [
        str(root / "images" / "more"),
        str(root / "images" / "b.jpg"),
    ]
    with pytest.raises(
        DataFault, match=r"more: a link to .*elsewhere, outside of .*set: expected the files themselves"
    ):
        Folder(root, split="all")


def test_a_folder_of_photos_that_is_a_link_outside_is_a_fault(root, tmp_path, photo):
    (root / "images" / "a.jpg").unlink()
    (root / "images").rmdir()
    photo(tmp_path / "elsewhere" / "a.jpg")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataFault, match=r"set/images: a link to .*elsewhere, outside of"):
        Folder(root, split="all")


def test_links_inside_are_followed_and_a_linked_root_is_no_link_out(root, tmp_path, photo, mask):
    (root / "images" / "b.jpg").symlink_to(root / "images" / "a.jpg")
    (root / "masks" / "b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(root)
    assert pairs_and_faults(root)[1] == [] and [pair.key for pair in pairs_and_faults(tmp_path / "link")[0]] == [
        "a",
        "b",
    ]


def test_a_link_to_a_folder_around_it_ends(root):
    (root / "images" / "again").symlink_to(root)
    (root / "masks" / "itself").symlink_to(root / "masks")
    pairs, faults = pairs_and_faults(root)
    assert [pair.key for pair in pairs] == ["a"]
    assert sorted(fault.rpartition("/")[2] for fault in faults) == [
        "again: a link to a folder around it",
        "itself: a link to a folder around it",
    ]


def test_a_link_to_itself_is_a_fault(root):
    (root / "images" / "b.jpg").symlink_to("b.jpg")
    pairs, faults = pairs_and_faults(root)
    assert [pair.key for pair in pairs] == ["a"] and faults == [f"{root}/images/b.jpg: a link in a circle"]


def test_a_folder_that_cannot_be_read_is_a_fault(root, photo, monkeypatch):
    photo(root / "images" / "locked" / "b.jpg")
    scandir = os.scandir

    def refuse(path):  # permissions do not stop the administrator, who may run this test
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert pairs_and_faults(root)[1] == [f"{root}/images/locked: cannot be read: Permission denied"]


def test_pictures_of_formats_that_are_not_read_are_noted(root):
    for name in ("b.gif", "c.HEIC", ".d.gif", "notes.txt"):
        (root / "images" / name).write_bytes(b"")
    listing = Listing(root)
    find_pairs(listing)
    assert listing.notes == [f"{root}/images: 2 files of formats that are not read: b.gif, c.HEIC"]


def test_folders_that_are_named_may_be_outside(root, tmp_path, photo):
    photo(tmp_path / "photos" / "a.jpg")
    assert pairs_and_faults(root, str(tmp_path / "photos"), "masks")[1] == []
    assert pairs_and_faults(root, "../photos", "masks")[1] == []


def test_a_link_to_nothing_is_read_as_absent(root):
    (root / "images" / "a.jpg").unlink()
    (root / "images" / "a.jpg").symlink_to("gone.jpg")
    with pytest.raises(DataFault, match=r"a\.jpg: no such file"):
        Folder(root, split="all")[0]


def test_names_that_differ_in_case_are_one_fault(root, photo, mask):
    photo(root / "images" / "N01.jpg")
    mask(root / "masks" / "n01.PNG")
    pairs, faults = pairs_and_faults(root)
    assert [pair.key for pair in pairs] == ["a"]
    assert faults == [
        f"{root}/images/N01.jpg: its mask {root}/masks/n01.PNG differs in case: expected the same name",
    ]


def test_hidden_files_of_windows_and_macos_are_passed_over(root):
    for name in ("images/Thumbs.db", "masks/desktop.ini", "masks/._a.png", "images/.DS_Store"):
        (root / name).write_bytes(b"junk")
    assert pairs_and_faults(root)[1] == []


def test_helpers(root, tmp_path):
    assert find_home(tmp_path, lambda folder: (folder / "masks").is_dir()) == root
    assert find_home(tmp_path, lambda folder: False) is None
    listing = Listing(root)
    assert list_pictures(listing, root, root / "absent") == {} and listing.faults == []
    found = list_pictures(listing, root, root / "images")
    assert absence("A", found, root) == f"no photo 'A' in {root}: a.jpg differs in case"
    assert absence("b", found, root, "mask") == f"no mask 'b' in {root}"
    assert link_fault(root, root / "images") is None
