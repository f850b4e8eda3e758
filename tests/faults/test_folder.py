"""Every file of a concept's folder is trained, belongs to an image, or is named with why not."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from tests.dataset_files import draw, write_toml
from trainer.common.problems import Problems
from trainer.config import TrainConfig
from trainer.data.dataset import TrainingData, load_dataset
from trainer.images.decode import decode

SUBSET = '[[datasets.subsets]]\nimage_dir = "{folder}/cat"\nclass_tokens = "tjtoy toy"\n'
TOML = "[[datasets]]\nresolution = 64\n{keys}" + SUBSET
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
JXL = b"\xff\x0a\xfa\x7f\x01\x90\x08\x08" + bytes(40)


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    draw(tmp_path / "cat" / "a.png")
    return tmp_path / "cat"


def config(cat: Path, keys: str = "") -> TrainConfig:
    return write_toml(cat.parent, TOML.replace("{keys}", keys))


def load(cat: Path, keys: str = "") -> tuple[TrainingData, str]:
    """The data, and all that is said of it."""
    data, warnings = load_dataset(config(cat, keys))
    return data, "\n".join([*map(str, warnings), *data.notes])


def problems(cat: Path) -> str:
    with pytest.raises(Problems) as found:
        load_dataset(config(cat))
    return str(found.value)


def trained(data: TrainingData) -> set[str]:
    return {sample.picture.path.name for sample in data.samples}


def captions(data: TrainingData) -> dict[str, str]:
    return {sample.picture.path.name: sample.lines[0] for sample in data.samples}


def content(format: str, size: tuple[int, int] = (64, 64), shade: int = 9, **options) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (shade, 90, 200)).save(file, format, **options)
    return file.getvalue()


def test_the_formats_that_people_have_are_read(cat: Path) -> None:
    for shade, (name, format) in enumerate(
        {
            "scan.tif": "TIFF",
            "anim.gif": "GIF",
            "web.jfif": "JPEG",
            "old.jp2": "JPEG2000",
            "map.ppm": "PPM",
            "UPPER.TIFF": "TIFF",
            "raw.j2k": "JPEG2000",
            "game.tga": "TGA",
            "paint.pcx": "PCX",
        }.items()
    ):
        (cat / name).write_bytes(content(format, shade=shade * 20))
    data, told = load(cat)
    assert trained(data) == {path.name for path in cat.iterdir()} and told == ""


def test_a_phones_heic_is_read(cat: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    (cat / "IMG_0001.HEIC").write_bytes(content("HEIF"))
    (cat / "IMG_0002.jpg").write_bytes(content("HEIF", shade=70))
    data, told = load(cat)
    assert trained(data) == {"a.png", "IMG_0001.HEIC", "IMG_0002.jpg"}
    decoder = type(decode((cat / "IMG_0001.HEIC").read_bytes()).raw).__module__
    assert decoder.startswith("pi_heif"), "pillow-heif's wheel bundles libx265, which is GPL"
    assert "not what the ending says: IMG_0002.jpg (HEIC)" in told and "IMG_0001" not in told


def test_what_is_not_read_is_named_with_how_to_convert_it(cat: Path) -> None:
    for name, begin in {
        "b.jxl": JXL,
        "c.psd": b"8BPS\0\1",
        "d.svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        "e.pdf": b"%PDF-1.7\n",
        "f.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        "g.MOV": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
        "h.dng": content("TIFF", shade=3),
        "i.cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        "j.zip": b"PK\x03\x04",
        "k.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }.items():
        (cat / name).write_bytes(begin)
    data, told = load(cat)
    assert trained(data) == {"a.png"}
    for name in {path.name for path in cat.iterdir()} - {"a.png"}:
        assert name in told, name
    for words in ("djxl", "1 Photoshop file is not trained", "2 camera raw files are not trained", "ffmpeg", "unpack"):
        assert words in told


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
        (LFS.encode(), "is a Git LFS pointer"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML document"),
        (b'{"error": "not found"}', "is a JSON document"),
        (b"../elsewhere/photo.jpg", "is a text file"),
        (b"", "is empty"),
        (bytes(range(7, 250)), "is not an image in any known format"),
    ],
)
@pytest.mark.parametrize("name", ["x.jpg", "X.PNG", "x.heic", "x.tif"])
def test_each_thing_in_place_of_an_image_has_its_own_message(cat: Path, name: str, begin: bytes, words: str) -> None:
    (cat / name).write_bytes(begin)
    assert f"{cat / name}: {words}" in problems(cat)


def test_content_decides_not_the_ending(cat: Path) -> None:
    (cat / "b.png").write_bytes(content("JPEG", shade=30))
    (cat / "c.dat").write_bytes(content("PNG", shade=60))
    (cat / "d").write_bytes(content("WEBP", shade=90))
    data, told = load(cat)
    assert trained(data) == {"a.png", "b.png", "c.dat", "d"}
    assert "b.png (JPEG), c.dat (PNG), d (WebP)" in told


def test_hidden_files_are_one_line(cat: Path) -> None:
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (cat / name).write_bytes(b"\0\5\x16\7")
    data, told = load(cat)
    assert trained(data) == {"a.png"}
    assert told.count("\n") == 0 and "4 hidden files are skipped: .DS_Store, ._a.png, Thumbs.db, desktop.ini" in told


def test_links_that_lead_nowhere_are_named(cat: Path) -> None:
    (cat / "gone.jpg").symlink_to(cat / "nothing.jpg")
    (cat / "here.png").symlink_to(draw(cat.parent / "other.png", shade=80))
    data, told = load(cat)
    assert trained(data) == {"a.png", "here.png"} and "1 link is not trained" in told and "gone.jpg" in told


def test_a_pipe_is_not_waited_for(cat: Path) -> None:
    os.mkfifo(cat / "pipe.png")
    assert "pipe.png" in load(cat)[1]


def test_images_in_folders_below_are_counted(cat: Path) -> None:
    for name in ("more/1.png", "more/deeper/2.JPG", ".hidden/3.png", "empty/readme.txt"):
        (cat / name).parent.mkdir(parents=True, exist_ok=True)
        (cat / name).write_bytes(b"x")
    told = load(cat)[1]
    assert "2 images in folders below are not trained: more" in told and "[[datasets.subsets]]" in told


@pytest.mark.parametrize(
    ("image", "caption"), [("A.PNG", "A.TXT"), ("b.jpg", "B.txt"), ("é.png", "e\u0301.txt"), ("c.jpg", "c.jpg.txt")]
)
def test_captions_of_nearly_the_same_name_belong_to_it(cat: Path, image: str, caption: str) -> None:
    draw(cat / "x.png", shade=40).rename(cat / image)
    (cat / caption).write_text("a tjtoy toy on a chair")
    data, told = load(cat)
    assert captions(data)[image] == "a tjtoy toy on a chair" and "without an image" not in told
    assert ("two endings: c.jpg.txt" in told) == (caption == "c.jpg.txt")


def test_a_caption_of_exactly_its_name_wins(cat: Path) -> None:
    (cat / "a.txt").write_text("tjtoy toy, mine")
    (cat / "A.TXT").write_text("tjtoy toy, another")
    data, told = load(cat)
    assert captions(data)["a.png"] == "tjtoy toy, mine" and "A.TXT" in told


def test_two_captions_of_nearly_its_name_must_agree(cat: Path) -> None:
    (cat / "A.TXT").write_text("one")
    (cat / "a.png.txt").write_text("two")
    assert "says something else" in problems(cat)


def test_other_files_are_named(cat: Path) -> None:
    (cat / "notes.md").write_text("# notes")
    (cat / "a_0064x0064_flux.npz").write_bytes(b"\x93NUMPY\1\0")
    told = load(cat)[1]
    assert "2 files are neither image nor caption" in told and "notes.md" in told and "a_0064x0064_flux.npz" in told


def test_warnings_are_told_beside_problems(cat: Path, caplog: pytest.LogCaptureFixture) -> None:
    (cat / "b.jxl").write_bytes(JXL)
    (cat / "c.png").write_bytes(b"")
    assert "c.png" in problems(cat) and "b.jxl" in caplog.text


def test_a_folder_of_unreadable_formats_alone_says_so(cat: Path) -> None:
    (cat / "a.png").unlink()
    (cat / "b.jxl").write_bytes(JXL)
    assert "holds no images" in problems(cat) and "djxl" in problems(cat)


def test_an_animation_says_which_frame_is_used(cat: Path) -> None:
    frames = [Image.new("RGB", (64, 64), (shade, 0, 90)) for shade in (10, 120, 240)]
    for name, format in (("b.gif", "GIF"), ("c.webp", "WEBP"), ("d.png", "PNG"), ("e.tif", "TIFF")):
        frames[0].save(cat / name, format, save_all=True, append_images=frames[1:])
    told = load(cat)[1]
    for words in ("b.gif (the first of 3 frames)", "c.webp (the first of 3 frames)", "d.png (the first of 3 frames)"):
        assert words in told
    assert "e.tif (the first of 3 pages)" in told and "a.png" not in told


def test_crops_say_how_much_they_lose(cat: Path) -> None:
    draw(cat / "tall.png", (90, 200), shade=20)
    draw(cat / "wide.png", (160, 90), shade=40)
    draw(cat / "near.png", (68, 64), shade=60)
    told = load(cat)[1]
    assert "2 of 4 images lose more than a tenth" in told and "near.png" not in told
    assert "tall.png: 55 % cut off" in told and "wide.png: 44 % cut off" in told
    assert "enable_bucket = true" in told
    keys = "enable_bucket = true\nmin_bucket_reso = 16\nmax_bucket_reso = 128\nbucket_reso_steps = 16\n"
    bucketed = load(cat, keys)[1]
    assert "55 %" not in bucketed and "44 %" not in bucketed and "enable_bucket" not in bucketed
    draw(cat / "panorama.png", (900, 90), shade=80)
    assert "panorama.png: 20 % cut off" in load(cat, keys)[1] and "raise max_bucket_reso" in load(cat, keys)[1]


def test_a_large_image_is_read_without_pythons_warning(cat: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("1", (11_000, 11_000), 1).save(cat / "large.png")
    data, told = load(cat)
    assert trained(data) == {"a.png", "large.png"} and told == "" and not list(recwarn)


def test_a_bomb_is_refused_by_size_before_it_is_decoded(cat: Path) -> None:
    bomb = bytearray(content("PNG", (1, 1)))
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + bytes(bomb[24:29])
    bomb[12:33] = header + struct.pack(">I", zlib.crc32(header))
    (cat / "bomb.png").write_bytes(bomb)
    told = problems(cat)
    assert "bomb.png: has 3,600 megapixels (60000x60000); at most 500 are read" in told and "scale it down" in told


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_broken_exif_refuses_an_image_in_no_format(cat: Path, format: str) -> None:
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {format}")
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 30
    options = {} if format == "TIFF" else {"exif": exif}
    (cat / f"b.{format.lower()}").write_bytes(content(format, **options))
    assert trained(load(cat)[0]) == {"a.png", f"b.{format.lower()}"}


@pytest.mark.parametrize(
    ("name", "begin", "words"),
    [
        ("a.kra", b"PK\x03\x04\x0a\0", "1 layered drawing file is not trained: a.kra"),
        ("b.xcf", b"gimp xcf v011\0", "export it as PNG from the program that made it"),
        ("c.gpr", b"II*\0" + bytes(60), "1 camera raw file is not trained: c.gpr"),
        ("d.jxr", b"II\xbc\x01" + bytes(60), "1 JPEG XR file is not trained: d.jxr"),
        ("e.icns", b"icns\0\0\1\0", "convert it to PNG: magick"),
        ("f.tar", bytes(257) + b"ustar", "1 archive file is not trained: f.tar"),
        ("g.xbm", b"#define a_width 16\n#define a_height 16\n", "1 XBM file"),
    ],
)
def test_rarer_formats_are_named_with_how_to_convert_them(cat: Path, name: str, begin: bytes, words: str) -> None:
    (cat / name).write_bytes(begin)
    data, told = load(cat)
    assert trained(data) == {"a.png"} and words in told


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (b"<!-- saved from url -->\n<html>", "is an HTML page"),
        (bytes(3000), "contains nothing but zero bytes"),
        (b"../.git/annex/objects/SHA256E-s12--0a.jpg\n", "git annex get"),
    ],
)
def test_what_lies_in_place_of_an_image_has_its_own_message(cat: Path, begin: bytes, words: str) -> None:
    (cat / "b.jpg").write_bytes(begin)
    assert words in problems(cat)


def test_a_tga_is_not_recognised_by_its_ending_alone(cat: Path) -> None:
    (cat / "b.tga").write_bytes(b"\xfe" * 60)
    assert "b.tga: is not an image in any known format" in problems(cat)


def test_names_that_are_not_utf8_are_a_problem_that_can_be_printed(cat: Path) -> None:
    (cat / "a.png").rename(cat / os.fsdecode(b"b\xff.png"))
    problems(cat).encode()
    assert r"b\udcff.png: its name is not valid UTF-8" in problems(cat)


def test_control_characters_of_names_do_not_reach_the_terminal(cat: Path) -> None:
    for name in ("b\x1b[31m.dat", "c\n.dat", os.fsdecode(b"d\xfe.dat")):
        (cat / name).write_bytes(b"\x01\x02")
    _, told = load(cat)
    assert "\x1b" not in told and r"b\x1b[31m.dat" in told and r"d\udcfe.dat" in told


def test_text_that_unpacks_to_gigabytes_is_refused_in_plain_words(cat: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "a" * 70_000_000, zip=True)
    Image.new("RGB", (64, 64)).save(cat / "b.png", pnginfo=text)
    assert "megabytes of compressed text" in problems(cat) and "Pillow" not in problems(cat)
    assert "MAX_TEXT" not in problems(cat)


def test_a_damaged_chunk_is_named_as_text(cat: Path) -> None:
    data = bytearray((cat / "a.png").read_bytes())
    at = data.index(b"IDAT")
    data[at + 6] ^= 0xFF
    (cat / "b.png").write_bytes(data)
    assert "checksum in IDAT)" in problems(cat)


def test_damaged_exif_is_one_plain_remark(cat: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01\0\x06"
    Image.new("RGB", (64, 64), 7).save(cat / "b.jpg", exif=exif)
    _, told = load(cat)
    assert "b.jpg: its Exif data is damaged" in told and "Corrupt" not in told


def test_many_cropped_images_are_counted(cat: Path) -> None:
    for number in range(24):
        draw(cat / f"wide{number:02}.png", (128, 64), shade=number)
    _, told = load(cat)
    assert "wide19.png: 50 % cut off and 4 more" in told and "wide20.png: " not in told
