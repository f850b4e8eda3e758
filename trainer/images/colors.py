"""Colours to sRGB: embedded ICC profiles, and what a file says without one (LittleCMS through Pillow)."""

import struct
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from trainer.images.boxes import color_boxes

Chromaticity = tuple[float, float]  # CIE 1931 x, y
WHITE_D65: Chromaticity = (0.3127, 0.3290)
BT709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
ADOBE_RGB, ADOBE_GAMMA = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256
CICP_PRIMARIES = {1: BT709, 9: BT2020, 11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), 12: DISPLAY_P3}
CICP_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}  # ITU-T H.273; 13 is sRGB's own curve
CICP_HDR = {16: "PQ", 18: "HLG"}
EXIF_IFD, INTEROPERABILITY_IFD, COLOR_SPACE, INTEROPERABILITY_INDEX = 0x8769, 0xA005, 0xA001, 1
CHANNELS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # an ICC profile's colour space -> Pillow's mode
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
VISIBLE = 1  # levels of 255: a profile that moves no colour by more than this is sRGB


class UnreadableProfile(ValueError):
    """An ICC profile that LittleCMS refuses or that belongs to other channels."""


def source_profile(image: Image.Image, data: bytes, kind: str, exif: Image.Exif | None) -> bytes | None:
    """The content of the ICC profile that an opened image's colours are in; None for sRGB or if the file does not say.

    data, kind: the file's content and its format, such as "PNG". exif: the image's Exif data, None if it cannot be
    read. A PNG's cICP chunk takes precedence over its embedded profile, and that over sRGB, gAMA and cHRM (PNG, third
    edition, 4.3). The code points of AVIF and HEIC count only if no profile is embedded (ISO/IEC 23000-22), and so
    does Exif's mark of Adobe RGB (DCF 2.0).
    """
    icc = image.info.get("icc_profile") or _icc_of_boxes(data, kind)
    if icc and kind != "PNG":
        return icc
    if code := _code_points(data, kind):
        primaries, transfer = code
        if primaries == 1 and transfer in (1, 6, 13, 14, 15):
            return None
        if primaries in CICP_PRIMARIES and transfer not in CICP_HDR:
            return matrix_profile(CICP_PRIMARIES[primaries], WHITE_D65, CICP_GAMMAS.get(transfer))
    if icc:
        return icc
    if kind == "PNG" and "srgb" not in image.info:
        return _from_gamma(image.info)
    return matrix_profile(ADOBE_RGB, WHITE_D65, ADOBE_GAMMA) if exif and _is_adobe_rgb(exif) else None


def hdr_curve(data: bytes, kind: str) -> str | None:
    """The HDR transfer function that a file states, "PQ" or "HLG"; None if it states none.

    data, kind: the file's content and its format, of which PNG, AVIF and HEIC are read.
    """
    code = _code_points(data, kind)
    return CICP_HDR.get(code[1]) if code else None


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an image from an ICC profile to sRGB; returns a new image, RGB or RGBA.

    profile: the content of the profile. Raises `UnreadableProfile` if it is damaged or for other channels.
    """
    source = _fitting_mode(image, profile)
    alpha = source.getchannel("A") if "A" in source.getbands() else None
    transform = _transform(profile)
    channels = source.convert(transform.input_mode) if source.mode != transform.input_mode else source
    converted = ImageCms.applyTransform(channels, transform)
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """Convert a CIELAB image (mode LAB, as a TIFF file may hold) to sRGB, mode RGB."""
    converted = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), _SRGB, outputMode="RGB")
    assert converted is not None
    return converted


def changes_colors(image: Image.Image, profile: bytes) -> bool:
    """Whether colours in this ICC profile differ visibly from sRGB: any of them by more than 1 of 255 levels.

    Judged by a grid over all colours, not by those in the image; CMYK always differs. Raises `UnreadableProfile`
    if the profile is damaged or for other channels than the image's.
    """
    _fitting_mode(image, profile)
    return _moves_colors(profile)


def matrix_profile(
    primaries: tuple[Chromaticity, ...], white: Chromaticity = WHITE_D65, gamma: float | None = None
) -> bytes:
    """The content of an ICC 2.4 display profile, made from an RGB colour space's primaries, white point and gamma.

    primaries: CIE 1931 x, y of red, green and blue. gamma: the exponent that decodes a value to linear light; None for
    sRGB's curve. The matrix is adapted to D50 by Bradford's transform (ICC.1:2001-04, annex E).
    """
    matrix = _to_d50(_xyz_of_rgb(primaries, white), _xyz(*white))
    text = b"RGB\0"
    curve = struct.pack(">4s4xI", b"curv", 1024) + _srgb_curve() if gamma is None else _power_curve(gamma)
    tags = {
        b"desc": struct.pack(">4s4xI", b"desc", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"CC0\0",
        b"wtpt": b"XYZ " + bytes(4) + _fixed(D50),
        **{name + b"XYZ": b"XYZ " + bytes(4) + _fixed(matrix[:, i]) for i, name in enumerate((b"r", b"g", b"b"))},
        **{name + b"TRC": curve for name in (b"r", b"g", b"b")},
    }
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x12s48x", start + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp", _fixed(D50)
    )
    return head + struct.pack(">I", len(tags)) + table + body


D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _xyz_of_rgb(primaries: tuple[Chromaticity, ...], white: Chromaticity) -> np.ndarray:
    columns = np.stack([_xyz(*primary) for primary in primaries], axis=1)
    return columns * np.linalg.solve(columns, _xyz(*white))


def _to_d50(matrix: np.ndarray, white: np.ndarray) -> np.ndarray:
    scale = np.diag((BRADFORD @ D50) / (BRADFORD @ white))
    return np.linalg.inv(BRADFORD) @ scale @ BRADFORD @ matrix


def _fixed(values: np.ndarray) -> bytes:
    return struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def _power_curve(gamma: float) -> bytes:
    return struct.pack(">4s4xIH", b"curv", 1, round(gamma * 256))


def _srgb_curve() -> bytes:
    encoded = np.arange(1024) / 1023
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.rint(linear * 65535).astype(">u2").tobytes()


def _from_gamma(info: dict[Any, Any]) -> bytes | None:
    """A profile of a PNG's gAMA and cHRM; None where they say sRGB, or nothing that can be used."""
    gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
    if not gamma and not chromaticity:
        return None
    points = chromaticity if chromaticity and len(chromaticity) == 8 else (*WHITE_D65, *sum(BT709, ()))
    white, *primaries = zip(points[::2], points[1::2], strict=True)
    if gamma and not 0.1 < gamma < 5:
        return None
    is_srgb_curve = not gamma or abs(gamma - 1 / 2.2) < 0.005  # the value that files of sRGB state beside it
    try:
        return matrix_profile(tuple(primaries), white, None if is_srgb_curve or not gamma else 1 / gamma)
    except (ZeroDivisionError, np.linalg.LinAlgError, struct.error, ValueError, OverflowError):
        return None  # no colours can be made from these numbers


def _code_points(data: bytes, kind: str) -> tuple[int, int] | None:
    """(primaries, transfer) by ITU-T H.273, from a PNG's cICP chunk or the colr box of an AVIF or HEIC file."""
    if kind == "PNG":
        return _cicp(data)
    if kind in ("AVIF", "HEIC"):
        return next((struct.unpack_from(">HH", box, 4) for box in color_boxes(data, kind) if box[:4] == b"nclx"), None)
    return None


def _icc_of_boxes(data: bytes, kind: str) -> bytes | None:
    """The ICC profile of a JPEG 2000 file, which Pillow does not read (ISO/IEC 15444-1, I.5.3.3, methods 2 and 3)."""
    if kind != "JPEG 2000":
        return None
    return next((box[3:] for box in color_boxes(data, kind) if box[:1] in (b"\2", b"\3")), None)


def _cicp(png: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) of a PNG's cICP chunk, which Pillow does not read (ITU-T H.273's code points)."""
    at = 8
    while at + 12 <= len(png):
        length, name = struct.unpack_from(">I4s", png, at)
        if name == b"cICP" and length == 4:
            return png[at + 8], png[at + 9]
        if name in (b"IDAT", b"IEND"):
            break
        at += 12 + length
    return None


def _is_adobe_rgb(exif: Image.Exif) -> bool:
    """DCF's mark of Adobe RGB: ColorSpace "uncalibrated" or 2, with the interoperability index R03."""
    try:
        space = exif.get_ifd(EXIF_IFD).get(COLOR_SPACE)
        index = exif.get_ifd(INTEROPERABILITY_IFD).get(INTEROPERABILITY_INDEX)
    except Exception:  # Pillow's parser raises many kinds for broken Exif data, which then says nothing
        return False
    return space == 2 or (space == 0xFFFF and str(index or "").strip("\0 ") == "R03")


def _fitting_mode(image: Image.Image, profile: bytes) -> Image.Image:
    """The image with the channels that the profile is for, and alpha where it has transparency."""
    mode = _transform(profile).input_mode
    if mode == "L" and image.mode in ("1", "L", "LA", "La"):
        return image.convert("LA" if image.has_transparency_data else "L")
    if mode == "RGB" and image.mode not in ("CMYK", "LAB"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if mode == image.mode == "CMYK":
        return image
    raise UnreadableProfile(f"it is for {mode} and the image is {image.mode}")


@lru_cache(maxsize=64)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]
        if (mode := CHANNELS.get(space)) is None:
            raise UnreadableProfile(f"its colour space is {space}")
        return ImageCms.ImageCmsTransform(source, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        raise UnreadableProfile("it is damaged, or for another colour space than it says") from error


@lru_cache(maxsize=64)
def _moves_colors(profile: bytes) -> bool:
    """Whether any of a grid of colours changes by more than `VISIBLE` levels. CMYK always does."""
    transform = _transform(profile)
    if transform.input_mode == "CMYK":
        return True
    steps = np.linspace(0, 255, 18 if transform.input_mode == "RGB" else 256).round().astype(np.uint8)
    if transform.input_mode == "L":
        grid = steps[None]
        plain = np.repeat(grid[..., None], 3, axis=2)
    else:
        plain = grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    converted = ImageCms.applyTransform(Image.fromarray(grid), transform)
    return bool(np.abs(np.asarray(converted).astype(int) - plain).max() > VISIBLE)
