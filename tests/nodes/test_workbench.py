"""What the page may do to images and captions, without a server: names, contents, two browsers, a full disk."""

import io
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from custom_nodes.flux_dreambooth import caption_edits
from custom_nodes.flux_dreambooth.answers import Conflict
from custom_nodes.flux_dreambooth.exchange import caption_record, files
from custom_nodes.flux_dreambooth.folder_entries import entries
from custom_nodes.flux_dreambooth.image_check import NotAnImage, check, preview, safe_stem
from custom_nodes.flux_dreambooth.image_folders import ImageFolders, find_data_dir
from tests.nodes.workbench import encoded
from tests.recipe_files import ROOT
from trainer.images.folder import read_folder

HOSTILE = ("..", "../x", "/etc", "", ".hidden", "a/b", "a\\b", "a\0b", "link", "-x", "x" * 5000, "none", "file.txt")


def image(folders: ImageFolders, file: str) -> dict[str, Any]:
    return next(each for each in folders.details("dog")["images"] if each["file"] == file)


def test_the_folder_is_found_as_the_runs_are(tmp_path: Path):
    assert find_data_dir({"FLUX_DATA_DIR": "/data"}, tmp_path, tmp_path) == Path("/data")
    assert find_data_dir({}, tmp_path, ROOT / "custom_nodes/flux_dreambooth") == ROOT / "flux_data"
    (tmp_path / "flux_data").mkdir()
    assert find_data_dir({}, tmp_path, ROOT / "custom_nodes/flux_dreambooth") == tmp_path / "flux_data"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out(folders: ImageFolders, name: str):
    before = sorted(folders.root.parent.rglob("*"))
    for request in (folders.details, lambda name: folders.add(name, "a.png", encoded()), folders.folder):
        with pytest.raises(LookupError):
            request(name)
    with pytest.raises(LookupError):
        folders.preview("dog", name, 256, False)
    if name not in ("none", "file.txt", "link"):
        with pytest.raises(ValueError, match="A name has"):
            folders.create(name)
    assert sorted(folders.root.parent.rglob("*")) == before


def test_the_overview_names_what_it_leaves_out(folders: ImageFolders):
    folders.add("dog", "a.png", encoded())
    found = folders.overview()
    assert found["found"] and found["writable"]
    assert found["concepts"] == [{"name": "dog", "images": 1, "captions": 0, "masks": 0, "cover": ("a.png",)}]
    assert [each["name"] for each in found["left_out"]] == ["link"]
    assert not ImageFolders(folders.root / "none").overview()["found"]


def test_a_folder_that_cannot_be_read_is_named(folders: ImageFolders, monkeypatch: pytest.MonkeyPatch):
    folders.create("cat")
    listed = Path.iterdir

    def guarded(path: Path):
        if path.name == "dog":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", guarded)
    found = folders.overview()
    assert [concept["name"] for concept in found["concepts"]] == ["cat"]
    assert {"name": "dog", "why": "Permission denied"} in found["left_out"]
    with pytest.raises(PermissionError):
        folders.details("dog")


def test_a_concept_is_created_once(folders: ImageFolders):
    assert folders.create("내 강아지") == {"name": "내 강아지"}
    for taken in ("내 강아지", "Dog", "link", "file.txt"):
        with pytest.raises((Conflict, ValueError)):
            folders.create(taken)
    assert folders.details("내 강아지")["images"] == []


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("IMG 1.JPG", "IMG 1"), ("../../etc/passwd", "passwd"), ("C:\\x\\y.png", "y"), (".hidden.png", "hidden"),
        ("dog.mask.png", "dog-mask-1"), ("a_mask.png", "a_mask-1"), ("con.png", "con-1"), ("a\0\n?.png", "a"),
        ("", "image"), ("...", "image"), ("x" * 500, "x" * 80), ("🐶" * 90, "🐶" * 40), ("a\ud800.png", "a"),
        ("v1.5.png", "v1-5"), ("가\u0301.png", "가\u0301"),
    ],
)  # fmt: skip
def test_names_are_made_safe(name: str, stem: str):
    assert safe_stem(name) == stem


def test_nothing_is_replaced_and_a_repeated_upload_is_the_same_image(folders: ImageFolders):
    first, second = encoded(1), encoded(2)
    assert folders.add("dog", "a.png", first) == {"file": "a.png", "width": 40, "height": 30, "existing": False}
    assert folders.add("dog", "other name.png", first)["file"] == "a.png"
    assert folders.add("dog", "A.JPG", second)["file"] == "A-2.png", "the ending is the format's, names differ in more"
    assert (folders.root / "dog/a.png").read_bytes() == first
    assert read_folder(folders.root / "dog").images == (folders.root / "dog/A-2.png", folders.root / "dog/a.png")


PNG = encoded()
BAD = {
    "text": b"hello", "html": b"<html><script>", "svg": b"<svg onload='x'/>", "empty": b"", "cut": PNG[:60],
    "gif": encoded(kind="GIF"), "eps": b"%!PS-Adobe", "wrong checksum": PNG[:45] + b"\xff" + PNG[46:],
    "bomb": encoded(size=(20_000, 20_000), kind="PNG", compress_level=9)[:4000], "pickle": b"\x80\x04.",
}  # fmt: skip


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_image_is_not_kept(folders: ImageFolders, data: bytes):
    with pytest.raises(NotAnImage):
        folders.add("dog", "a.png", data)
    assert list((folders.root / "dog").iterdir()) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_each_format_that_is_taken_is_shown_as_a_jpeg(folders: ImageFolders, kind: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(size=(600, 400), kind=kind, **({"exif": exif} if kind != "BMP" else {}))
    seen = check(data)
    assert (seen.width, seen.height) == ((600, 400) if kind == "BMP" else (400, 600))
    file = folders.add("dog", "x", data)["file"]
    shown = Image.open(io.BytesIO(folders.preview("dog", file, 256, False)))
    assert shown.format == "JPEG" and max(shown.size) == 256 and (shown.width < shown.height) == (kind != "BMP")


def test_a_mask_is_kept_next_to_its_image_and_replaces_nothing(folders: ImageFolders):
    folders.add("dog", "a.png", encoded())
    mask = encoded(255)
    assert folders.add_mask("dog", "a.png", mask) == {"file": "a.mask.png", "existing": False}
    assert folders.add_mask("dog", "a.png", mask)["existing"] and image(folders, "a.png")["mask"]
    with pytest.raises(Conflict):
        folders.add_mask("dog", "a.png", encoded(9))
    assert (folders.root / "dog/a.mask.png").read_bytes() == mask
    for file, data in (("none.png", mask), ("../dog/a.png", mask), ("a.png", encoded(1, (8, 8))), ("a.png", b"x")):
        with pytest.raises((LookupError, ValueError)):
            folders.add_mask("dog", file, data)


def test_a_mask_darkens_what_it_leaves_out(folders: ImageFolders):
    folders.add("dog", "a.png", encoded(200))
    mask = Image.new("L", (40, 30))
    mask.paste(255, (20, 0, 40, 30))
    mask.save(folders.root / "dog/a.mask.png")
    shown = Image.open(io.BytesIO(folders.preview("dog", "a.png", 256, True)))
    assert shown.getpixel((5, 15))[0] < 90 < 190 < shown.getpixel((35, 15))[0]
    assert image(folders, "a.png")["mask"] and len(folders.details("dog")["images"]) == 1
    with pytest.raises(ValueError, match="side"):
        folders.preview("dog", "a.png", 257, False)
    with pytest.raises(NotAnImage):
        preview(b"no image", 256)


def test_links_copies_and_broken_images_are_named(folders: ImageFolders):
    folder = folders.root / "dog"
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(encoded())
    (folder / "broken.jpg").write_bytes(b"no")
    (folder / "l.png").symlink_to(folders.root.parent / "outside/secret.png")
    (folder / "notes.md").write_text("x")
    found = folders.details("dog")
    assert {each["name"] for each in found["left_out"]} == {"l.png", "notes.md"}
    texts = {each["file"]: [(m["level"], m["text"][:16]) for m in each["messages"]] for each in found["images"]}
    assert texts["b.png"] == [("note", "It has no captio"), ("note", "It is a copy of ")]
    assert texts["broken.jpg"][0][0] == "problem"


def test_a_folder_is_sorted_as_the_trainer_sorts_it(folders: ImageFolders):
    folder = folders.root / "dog"
    names = "a.png a.txt B.PNG b.TXT c.jpg c.caption d.png d.mask.png e.png e_mask.png f-masklabel.png g.png.txt g.png"
    for number, name in enumerate(f"{names} x.mask.png h.png H.txt h.caption i.webp i.mask.png 가.png 가.txt".split()):
        (folder / name).write_bytes(encoded(number) if not name.lower().endswith((".txt", ".caption")) else b"text")
    ours, trainer = entries(folder), read_folder(folder)
    assert [*ours.images] == [path.name for path in trainer.images] and len(ours.images) == 10
    assert {**ours.captions} == {path.name: found[0].name for path, found in trainer.captions.items()}
    assert {**ours.masks} == {path.name: found[0].name for path, found in trainer.masks.items()}


def test_five_hundred_images_are_listed(folders: ImageFolders):
    for number in range(500):
        (folders.root / f"dog/{number:03}.png").write_bytes(encoded(number % 256, (8 + number // 256, 8)))
    start = time.perf_counter()
    found = folders.details("dog")["images"]
    assert len(found) == 500 and sum(len(image["messages"]) for image in found) == 500, "no caption each, no copy"
    assert time.perf_counter() - start < 20 and folders.overview()["concepts"][0]["images"] == 500


def test_two_browsers_upload_at_once(folders: ImageFolders):
    def upload(browser: int) -> None:
        own = ImageFolders(folders.root)
        for number in range(8):
            own.add("dog", "photo.png", encoded(browser * 8 + number))

    threads = [threading.Thread(target=upload, args=(browser,)) for browser in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [path for path in (folders.root / "dog").iterdir() if path.suffix == ".png"]
    assert len(kept) == 24 and len({path.read_bytes() for path in kept}) == 24


def test_a_full_disk_keeps_nothing_half_written(folders: ImageFolders, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    folders.add("dog", "a.png", encoded())
    caption_edits.write(folders.root / "dog", "a.png", "before", None)
    monkeypatch.setattr(files.os, "fsync", full)
    for request in (
        lambda: folders.add("dog", "b.png", encoded(9)),
        lambda: caption_edits.write(folders.root / "dog", "a.png", "after", "before"),
    ):
        with pytest.raises(OSError, match="No space"):
            request()
    assert {path.name for path in (folders.root / "dog").iterdir()} == {"a.png", "a.txt"}
    monkeypatch.undo()
    assert image(folders, "a.png")["caption"] == "before"
    assert caption_edits.undo(folders.root / "dog")["changes"][0]["after"] == ""


def test_what_a_killed_upload_left_is_never_an_image_and_goes_later(folders: ImageFolders):
    part = folders.root / "dog/.part-x.tmp"
    part.write_bytes(encoded()[:50])
    os.utime(part, (1, 1))
    assert folders.details("dog")["images"] == [] and folders.overview()["concepts"][0]["images"] == 0
    folders.add("dog", "a.png", encoded())
    assert not part.exists()


def test_captions_are_written_where_the_trainer_reads_them(folders: ImageFolders):
    folder = folders.root / "dog"
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        (folder / name).write_bytes(encoded(number))
    (folder / "B.TXT").write_text("old b\n")
    (folder / "c.png.txt").write_text("old c")
    for file, was in (("a.png", None), ("b.png", "old b"), ("c.png", "old c")):
        caption_edits.write(folder, file, f"new {file}  \r\n", was)
    read = read_folder(folder)
    assert {path.name: read.captions[path][0].read_text() for path in read.images} == {
        "a.png": "new a.png\n", "b.png": "new b.png\n", "c.png": "new c.png\n",
    }  # fmt: skip
    assert image(folders, "a.png")["by"] == "person"


def test_a_caption_that_somebody_else_changed_is_not_overwritten(folders: ImageFolders):
    folder = folders.root / "dog"
    folders.add("dog", "a.png", encoded())
    caption_edits.write(folder, "a.png", "one", None)
    with pytest.raises(Conflict) as found:
        caption_edits.write(folder, "a.png", "two", None)
    assert found.value.more == {"caption": "one"} and (folder / "a.txt").read_text() == "one\n"
    for bad in ("x" * 5000, "a\0b", "a\x1bb", "\ud800"):
        with pytest.raises(ValueError, match="caption"):
            caption_edits.write(folder, "a.png", bad, "one")
    (folder / "a.txt").write_text("x" * 20_000)
    with pytest.raises(ValueError, match="too many to show"):
        caption_edits.write(folder, "a.png", "short", "x" * 16_384)
    assert "too many to show" in image(folders, "a.png")["messages"][0]["text"]
    for file in ("none.png", "../a.png", "a.txt"):
        with pytest.raises(LookupError):
            caption_edits.write(folder, file, "x", None)


def test_replacing_in_all_captions_and_taking_it_back(folders: ImageFolders):
    folder = folders.root / "dog"
    for number, name in enumerate("abc"):
        folders.add("dog", f"{name}.png", encoded(number))
        caption_edits.write(folder, f"{name}.png", f"a dog {name}", None)
    seen = caption_edits.replace_all(folder, "dog", "tjdog dog", True)
    assert len(seen["changes"]) == 3 and image(folders, "a.png")["caption"] == "a dog a"
    caption_edits.replace_all(folder, "dog", "tjdog dog", False)
    caption_edits.write(folder, "b.png", "by hand", "a tjdog dog b")
    assert caption_edits.undo(folder)["changes"] == [{"file": "b.png", "before": "by hand", "after": "a tjdog dog b"}]
    (folder / "c.txt").write_text("changed outside")
    with pytest.raises(Conflict, match=r"c\.png was changed"):
        caption_edits.undo(folder)
    (folder / "c.txt").write_text("a tjdog dog c")
    with (folders.root / ".captions/dog.edits.jsonl").open("a") as record:
        record.write('{"edit": 99, "file": "a.p')  # a kill has cut this line
    assert len(caption_edits.undo(folder)["changes"]) == 3
    assert [image(folders, f"{name}.png")["caption"] for name in "abc"] == ["a dog a", "a dog b", "a dog c"]
    for _ in range(3):
        caption_edits.undo(folder)
    with pytest.raises(Conflict, match="no edit"):
        caption_edits.undo(folder)


def test_a_record_of_edits_leads_nowhere_else(folders: ImageFolders):
    folder = folders.root / "dog"
    folders.add("dog", "a.png", encoded())
    (folders.root / "other.txt").write_text("x")
    record = '{"edit": 1, "file": "a.png", "caption_file": "../other.txt", "before": "evil", "after": "x"}\n'
    (folders.root / ".captions/dog.edits.jsonl").write_text(record)
    with pytest.raises(Conflict):
        caption_edits.undo(folder)
    assert (folders.root / "other.txt").read_text() == "x"


def test_a_caption_is_a_model_s_until_somebody_edits_it(folders: ImageFolders):
    folder = folders.root / "dog"
    folders.add("dog", "a.png", encoded())
    (folder / "a.txt").write_text("tjdog dog on a sofa\n")
    caption_record.write_record(folder, {"a.txt": caption_record.digest("tjdog dog on a sofa")})
    assert image(folders, "a.png")["by"] == "model"
    caption_edits.write(folder, "a.png", "tjdog dog on a red sofa", "tjdog dog on a sofa")
    assert image(folders, "a.png")["by"] == "person"
    (folders.root / ".captions/dog.json").write_text("[")
    assert caption_record.read_record(folder) == {}
