from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.images.decode import read_picture
from trainer.images.resize import default_interpolation, fit, to_tensor


def save(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    picture = read_picture(save(Image.new("RGB", (4, 3), "white").convert(mode)))
    assert (picture.mode, picture.size) == ("RGB", (4, 3))
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_becomes_rgb() -> None:
    picture = read_picture(save(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert picture.mode == "RGB" and min(picture.getpixel((0, 0))) > 250


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    picture = read_picture(save(grey))
    assert [picture.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_transparency_is_flattened_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert read_picture(save(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(save(half)).getpixel((0, 0)) == (127, 127, 127)


def test_a_transparent_palette_colour_is_flattened() -> None:
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    assert read_picture(save(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 1)), (6, (1, 0)), (8, (0, 3))])
def test_exif_rotation_is_applied(orientation: int, corner: tuple[int, int]) -> None:
    picture = Image.new("RGB", (4, 2), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = read_picture(save(picture, exif=exif))
    assert upright.size == ((2, 4) if orientation in (6, 8) else (4, 2))
    assert upright.getpixel(corner) == (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_truncated_picture_is_an_error(format: str) -> None:
    whole = save(noise((64, 64)), format)
    assert read_picture(whole).size == (64, 64)
    with pytest.raises(ValueError, match=r"decoded|known format"):
        read_picture(whole[: len(whole) // 2])


def test_a_damaged_png_is_an_error() -> None:
    data = bytearray(save(noise((64, 64))))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_picture(bytes(data))


def test_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match="is empty"):
        read_picture(b"")
    with pytest.raises(ValueError, match="an HTML page, not an image"):
        read_picture(b"<html>404</html>")


def test_area_is_the_exact_mean_where_sizes_divide() -> None:
    picture = noise((12, 8))
    small = np.asarray(fit(picture, (4, 2), (0, 0), (4, 2), "area"), np.float64)
    blocks = np.asarray(picture, np.float64).reshape(2, 4, 4, 3, 3).mean((1, 3))
    assert np.abs(small - blocks).max() <= 0.5 + 1e-9


def test_area_counts_partly_covered_pixels_by_their_share() -> None:
    row = Image.fromarray(np.array([[0, 60, 240]], np.uint8).repeat(2, 0)).convert("RGB")
    small = fit(row, (2, 2), (0, 0), (2, 2), "area")
    # each new pixel covers one and a half old ones
    assert [small.getpixel((x, 0))[0] for x in range(2)] == [round((0 + 0.5 * 60) / 1.5), round((30 + 240) / 1.5)]


@pytest.mark.parametrize("size", [(13, 7), (40, 30), (41, 29), (90, 70), (1, 1)])
def test_area_against_a_table_of_overlaps(size: tuple[int, int]) -> None:
    picture = noise((41, 29))
    across, down = overlaps(41, size[0]), overlaps(29, size[1])
    expected = np.einsum("ah,hwc,bw->abc", down, np.asarray(picture, np.float64), across)
    found = np.asarray(fit(picture, size, (0, 0), size, "area"), np.float64)
    assert np.abs(found - expected).max() <= 0.5 + 1e-6


def overlaps(length: int, count: int) -> np.ndarray:
    """How much of each new pixel each old pixel covers, [count, length]."""
    edges, old = np.arange(count + 1) * length / count, np.arange(length)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return covered.clip(0) * count / length


def test_area_of_one_colour_stays_that_colour() -> None:
    flat = fit(Image.new("RGB", (101, 67), (200, 7, 255)), (64, 48), (0, 0), (64, 48), "area")
    assert flat.getcolors() == [(64 * 48, (200, 7, 255))]


def test_fit_crops_after_resizing() -> None:
    picture = noise((100, 50))
    fitted = fit(picture, (100, 50), (18, 0), (64, 48))
    assert np.array_equal(np.asarray(fitted), np.asarray(picture)[0:48, 18:82])


def test_default_filter_is_area_only_when_no_side_grows() -> None:
    assert default_interpolation((100, 100), (100, 50)) == "area"
    assert default_interpolation((100, 100), (101, 50)) == "lanczos"


def test_tensor_is_in_minus_one_to_one_and_mirrors() -> None:
    picture = noise((5, 4))
    pixels = to_tensor(picture)
    assert pixels.shape == (3, 4, 5) and pixels.dtype == torch.float32
    expected = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.allclose(pixels, expected, atol=1e-6)
    assert torch.equal(to_tensor(picture, flip=True), pixels.flip(2))


def test_a_path_and_its_content_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(save(noise((6, 6))))
    assert np.array_equal(np.asarray(read_picture(path)), np.asarray(read_picture(path.read_bytes())))
