"""Colours: whatever space a file states, its image is read in sRGB; what is sRGB already keeps its numbers."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from trainer.images.boxes import CONTAINERS, color_boxes
from trainer.images.colors import ADOBE_GAMMA, ADOBE_RGB, BT709, DISPLAY_P3, WHITE_D65, matrix_profile
from trainer.images.decode import decode, read_picture

COLOURS = ((200, 30, 40), (224, 172, 140), (80, 150, 60), (90, 140, 220), (250, 250, 250), (12, 10, 8))
PROFILES = {
    "Display P3": matrix_profile(DISPLAY_P3),
    "Adobe RGB": matrix_profile(ADOBE_RGB, WHITE_D65, ADOBE_GAMMA),
    "ProPhoto-like": matrix_profile(((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), (0.3457, 0.3585), 1.8),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": 100, "chroma": 444},
}


def patches() -> Image.Image:
    return Image.fromarray(np.array(COLOURS, np.uint8).repeat(16, 0)[None].repeat(16, 0))


def encoded(image: Image.Image, profile: bytes) -> Image.Image:
    """The numbers that mean the same colours in a profile's space."""
    target = ImageCms.ImageCmsProfile(BytesIO(profile))
    found = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    assert found is not None
    return found


def save(image: Image.Image, format: str, **options) -> bytes:
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if format == "AVIF" and "AVIF" not in Image.SAVE:
        Image.init()
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_with(image: Image.Image, **chunks: bytes) -> bytes:
    """A PNG with these chunks right after its header."""
    data = save(image, "PNG")
    return data[:33] + b"".join(chunk(name.encode(), content) for name, content in chunks.items()) + data[33:]


def seen(data: bytes) -> np.ndarray:
    return np.asarray(read_picture(data))[8, 8::16].astype(int)


@pytest.mark.parametrize("space", PROFILES)
@pytest.mark.parametrize("format", FORMATS)
def test_an_embedded_profile_is_converted_to_srgb(space: str, format: str) -> None:
    profile = PROFILES[space]
    data = save(encoded(patches(), profile), format, icc_profile=profile, **FORMATS[format])
    assert decode(data).profile == profile
    # what LittleCMS itself makes of the file; lossy formats differ from the colours meant, never from this
    opened = Image.open(BytesIO(data))
    right = ImageCms.profileToProfile(
        opened, ImageCms.ImageCmsProfile(BytesIO(opened.info["icc_profile"])), ImageCms.createProfile("sRGB")
    )
    assert np.abs(seen(data) - np.asarray(right)[8, 8::16].astype(int)).max() <= 1
    tolerance = 2 if format in ("PNG", "WEBP", "TIFF") else 6
    in_gamut = 4 if space == "ProPhoto-like" else tolerance
    assert np.abs(seen(data) - COLOURS).max() <= max(tolerance, in_gamut)


@pytest.mark.parametrize("profile", [SRGB, matrix_profile(BT709)], ids=["lcms", "BT.709"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_an_srgb_profile_changes_no_number(profile: bytes, format: str) -> None:
    """So that what was encoded before stays valid."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    options = FORMATS[format]
    tagged, plain = save(noise, format, icc_profile=profile, **options), save(noise, format, **options)
    assert decode(tagged).profile is None
    assert np.array_equal(np.asarray(read_picture(tagged)), np.asarray(read_picture(plain)))


def test_grey_and_transparent_images_are_converted_too() -> None:
    dark = matrix_profile(BT709, WHITE_D65, 1.0)
    grey = read_picture(save(Image.new("L", (4, 4), 55), "PNG", icc_profile=dark))
    assert grey.getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)  # 55/255 of the light
    clear = Image.new("RGBA", (4, 4), (55, 55, 55, 0))
    assert read_picture(save(clear, "PNG", icc_profile=dark)).getpixel((0, 0)) == (255, 255, 255)
    solid = Image.new("RGBA", (4, 4), (55, 55, 55, 255))
    assert read_picture(save(solid, "PNG", icc_profile=dark)).getpixel((0, 0)) == grey.getpixel((0, 0))


def grey_profile(gamma: float) -> bytes:
    """A grey ICC 2.4 display profile with a power curve (ICC.1:2001-04)."""
    d50 = struct.pack(">3i", 63190, 65536, 54061)  # XYZ, in 65536ths
    white, curve = b"XYZ \0\0\0\0" + d50, struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 156 + len(white), len(curve))
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x12s48x", 156 + len(white) + len(curve), 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp", d50
    )
    return header + tags + white + curve


def test_a_transparent_grey_level_stays_transparent_through_a_profile() -> None:
    image = Image.new("L", (4, 4), 55)
    image.putpixel((0, 0), 200)
    read = read_picture(save(image, "PNG", icc_profile=grey_profile(1.0), transparency=200))
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert read.getpixel((1, 1)) == pytest.approx((127, 127, 127), abs=1)  # 55/255 of the light


def test_a_profile_that_cannot_be_used_is_named_and_passed_over() -> None:
    plain = np.asarray(read_picture(save(patches(), "PNG")))
    for profile in (b"no profile" * 40, SRGB[:200]):
        data = save(patches(), "PNG", icc_profile=profile)
        (note,) = decode(data).notes
        assert "colour profile cannot be used" in note
        assert np.array_equal(np.asarray(read_picture(data)), plain)
    cmyk = save(Image.new("CMYK", (8, 8), (10, 20, 30, 40)), "JPEG", icc_profile=PROFILES["Display P3"])
    assert "it is for RGB and the image is CMYK" in decode(cmyk).notes[0]


def cHRM(*points: float) -> bytes:  # noqa: N802 (the chunk's name)
    return struct.pack(">8I", *(round(point * 100_000) for point in points))


P3_CHUNK = cHRM(0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
SRGB_CHUNK = cHRM(0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
GAMMA_SRGB, GAMMA_LINEAR = struct.pack(">I", 45455), struct.pack(">I", 100_000)


def test_what_a_png_says_without_a_profile() -> None:
    p3 = encoded(patches(), PROFILES["Display P3"])
    assert np.abs(seen(png_with(p3, gAMA=GAMMA_SRGB, cHRM=P3_CHUNK)) - COLOURS).max() <= 2
    assert np.abs(seen(png_with(p3, cICP=bytes([12, 13, 0, 1]))) - COLOURS).max() <= 2
    linear = read_picture(png_with(Image.new("RGB", (4, 4), (55, 55, 55)), gAMA=GAMMA_LINEAR))
    assert linear.getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


@pytest.mark.parametrize(
    "chunks",
    [
        {"gAMA": GAMMA_SRGB},
        {"gAMA": GAMMA_SRGB, "cHRM": SRGB_CHUNK},
        {"sRGB": b"\0", "gAMA": GAMMA_LINEAR, "cHRM": P3_CHUNK},  # sRGB wins
        {"cICP": bytes([1, 13, 0, 1]), "gAMA": GAMMA_LINEAR},  # cICP wins
        {"gAMA": bytes(4)},
        {"gAMA": b"\xff" * 4},
        {"cHRM": bytes(32)},
    ],
)
def test_a_png_that_says_srgb_or_nonsense_keeps_its_numbers(chunks: dict[str, bytes]) -> None:
    data = png_with(patches(), **chunks)
    assert decode(data).profile is None and np.array_equal(seen(data), COLOURS)


def test_hdr_is_named() -> None:
    (note,) = decode(png_with(patches(), cICP=bytes([9, 16, 0, 1]))).notes
    assert "HDR image (PQ)" in note


def avif_that_says(primaries: int, transfer: int, **options) -> bytes:
    """An AVIF whose numbers mean the patches in Display P3, with other code points in its colr box."""
    plain = Image.fromarray(np.asarray(encoded(patches(), PROFILES["Display P3"])))  # without its embedded profile
    data = save(plain, "AVIF", quality=100, subsampling="4:4:4", **options)
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def test_an_avifs_code_points_count_without_a_profile() -> None:
    assert np.abs(seen(avif_that_says(12, 13)) - np.array(COLOURS)).max() <= 4  # as JPEG-like compression leaves it
    assert np.abs(seen(avif_that_says(1, 13)) - np.array(COLOURS)).max() > 15  # the numbers as they are
    with_profile = avif_that_says(9, 13, icc_profile=PROFILES["Display P3"])
    assert np.abs(seen(with_profile) - np.array(COLOURS)).max() <= 4
    assert "HDR image (PQ)" in decode(avif_that_says(9, 16)).notes[0]


def test_a_jpeg_2000_file_with_a_profile() -> None:
    profile = PROFILES["Adobe RGB"]
    data = save(encoded(patches(), profile), "JPEG2000")
    at, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    size, colr = struct.unpack_from(">I", data, at)[0], b"colr\2\0\0" + profile
    inside = data[header + 4 : at] + struct.pack(">I", 4 + len(colr)) + colr + data[at + size :]
    grown = struct.unpack_from(">I", data, header)[0] + 4 + len(colr) - size
    assert np.abs(seen(data[:header] + struct.pack(">I", grown) + inside) - np.array(COLOURS)).max() <= 2


@pytest.mark.parametrize("length", [16, 40, 200])
def test_boxes_that_are_cut_short_say_nothing(length: int) -> None:
    for kind in CONTAINERS:
        assert color_boxes(avif_that_says(12, 13)[:length], kind) == []


def test_exifs_mark_of_adobe_rgb_counts_without_a_profile() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    image = encoded(patches(), PROFILES["Adobe RGB"])
    assert np.abs(seen(save(image, "JPEG", exif=exif, **FORMATS["JPEG"])) - COLOURS).max() <= 4
    exif.get_ifd(0x8769)[0xA005] = {1: "R98"}  # sRGB's own mark
    assert decode(save(image, "JPEG", exif=exif)).profile is None
