"""Masks: where in an image its concept is. From files to maps on the latents' grid.

A mask is a grey image of its image's upright size, white where the concept is. It is resized, cropped and
mirrored exactly as its image, then averaged over the 8 x 8 pixels of each latent.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem, Problems
from trainer.data.dataset_config import SubsetConfig
from trainer.images.decode import Decoded, Size, decode
from trainer.images.folder import MASK, Folder, same_name, some
from trainer.images.formats import IMAGE_ENDINGS

FAINT = 128  # a mask whose brightest pixel is darker than this gives no place even half its weight
GREY = ("1", "L", "LA", "I", "I;16")
COLORED, COLORED_SHARE = 40, 0.01  # by how much channels differ in how many pixels of a mask that is not grey
INVERTED = 0.95  # the share of each edge's pixels that is white in an inverted mask, and not of the whole mask
LATENT = 8  # pixels along one side of a latent

Files = Mapping[Path, Sequence[Path]]  # mask files by their image


@dataclass(frozen=True)
class Mask:
    """A mask that has been checked: it is readable and has the size of its image. The pixels are not kept.

    sha256: of the file's content. from_alpha: whether `path` is the image itself, whose alpha channel is the mask.
    """

    path: Path
    sha256: str
    from_alpha: bool = False

    def read(self) -> Image.Image:
        """Read the mask: mode L, upright, the size of its image.

        Raises `Problems` if the file has changed since it was checked, and OSError if it cannot be read.
        """
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise Problems([Problem(str(self.path), "was replaced since it was checked", "start again")])
        mask = _pixels(decode(data), self.from_alpha)
        assert mask is not None
        return mask


@dataclass(frozen=True)
class MaskScan:
    """The masks of a folder. masks: by the path of their image. problems stop the run; warnings do not."""

    masks: Mapping[Path, Mask]
    problems: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()


def latent_mask(mask: Image.Image, flip: bool, dilation: int = 0) -> torch.Tensor:
    """The share of each latent that is inside a mask: [H/8, W/8] float32 in [0, 1].

    mask: mode L, resized and cropped like the image that is encoded. flip: whether to mirror it left to right.
    dilation: by how many pixels white areas grow first, on each side.
    """
    pixels = torch.from_numpy(np.array(mask, np.uint8)).float()[None, None] / 255
    if dilation:
        side = 2 * dilation + 1
        pixels = torch.nn.functional.max_pool2d(pixels, (1, side), 1, (0, dilation))
        pixels = torch.nn.functional.max_pool2d(pixels, (side, 1), 1, (dilation, 0))
    shares = torch.nn.functional.avg_pool2d(pixels, LATENT)[0, 0]
    return (shares.flip(1) if flip else shares).contiguous()


def scan_masks(subset: SubsetConfig, folder: Folder, sizes: Mapping[Path, Size], cuts_out: bool = False) -> MaskScan:
    """Find, decode and check the masks of a folder's images. Problems are returned, not raised.

    With conditioning_data_dir, an image's mask is the file of its name in that folder; without, it is NAME.mask.png
    next to it or, with alpha_mask, its alpha channel. Masks are read only if the subset trains with them or `cuts_out`,
    which says that compositions need them. sizes: upright width and height of the images, by path.
    """
    if not (subset.masks_loss or cuts_out):
        idle = [path for paths in folder.masks.values() for path in paths]
        hint = "set masked_loss = true to train what they show; rename them if they are images to train"
        return MaskScan({}, (), _one(subset, idle, "files not trained, being named as masks of images", hint))
    try:
        files, warnings = find_mask_files(subset, folder, sizes)
    except Problems as found:
        return MaskScan({}, found.problems)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        looked = dict(zip(sizes, pool.map(lambda path: _look(subset, path, sizes[path], files), sizes), strict=True))
    problems = [found for found in looked.values() if isinstance(found, Problem)]
    good = {path: found for path, found in looked.items() if isinstance(found, _Checked)}
    without = [path for path, found in looked.items() if found is None]
    if without and (good or not subset.is_reg):
        problems += _missing_problems(subset, without)
        warnings += _missing_warnings(subset, without)
    warnings += [found.doubt for found in good.values() if found.doubt]
    warnings += _shared_warnings(subset, {path: found.mask for path, found in good.items()})
    return MaskScan({path: found.mask for path, found in good.items()}, problems, warnings)


@dataclass(frozen=True)
class _Checked:
    """A mask that can be used; doubt: why it is probably not what was meant."""

    mask: Mask
    doubt: Problem | None


def _look(subset: SubsetConfig, image: Path, size: Size, files: Files) -> _Checked | Problem | None:
    """The mask of one image, or what is wrong with it; None where there is none."""
    named = files.get(image, ())
    if len(named) > 1:
        return Problem(str(named[0]), f"{named[1].name} in the same folder is a mask of {image.name} too", "keep one")
    if named:
        return _check(named[0], image, size, from_alpha=False)
    reads_alpha = subset.alpha_mask and not subset.conditioning_data_dir
    return _check(image, image, size, from_alpha=True) if reads_alpha else None


def _check(file: Path, image: Path, size: Size, from_alpha: bool) -> _Checked | Problem | None:
    name = "the alpha channel" if from_alpha else "the mask"
    try:
        data = file.read_bytes()
        image_file = decode(data)
        mask = _pixels(image_file, from_alpha)
    except (ValueError, OSError) as error:
        return Problem(str(file), f"{name} {error}", "replace it")
    if mask is None:
        return None
    if mask.size != size:
        what = f"{name} is {mask.width}x{mask.height}, but {image.name} is {size[0]}x{size[1]}"
        hint = "a mask has the size of its image"
        if mask.size == size[::-1]:
            hint = "turn the mask by 90 degrees: Exif data of photographs is followed, so they are upright"
        return Problem(str(file), what, hint)
    values = np.asarray(mask)
    darkest, brightest = int(values.min()), int(values.max())
    doubt = None
    if brightest == 0:
        return Problem(str(file), f"{name} is empty", "make it white where the concept is, or delete it")
    if darkest == 255:
        doubt = Problem(str(file), f"{name} is white everywhere, so it masks nothing")
    elif brightest < FAINT:
        doubt = Problem(str(file), f"{name} is faint: its brightest pixel is {brightest} of 255")
    elif odd := _oddity(image_file, values, from_alpha):
        doubt = Problem(str(file), f"{name} {odd[0]}", odd[1])
    return _Checked(Mask(file, hashlib.sha256(data).hexdigest(), from_alpha), doubt)


def _oddity(file: Decoded, values: np.ndarray, from_alpha: bool) -> tuple[str, str] | None:
    """Why a mask is probably not what was meant, and what to do; None if it looks right. values: its pixels."""
    if not from_alpha:
        if file.frames > 1:
            return f"holds {file.frames} frames, and the first one is read", "save the frame that you want as PNG"
        alpha = file.to_alpha()
        if alpha is not None and alpha.getextrema()[0] != 255:
            return "has transparent parts, but only its red channel is read", "save it without an alpha channel"
        if file.raw.mode not in GREY:
            colors = np.asarray(file.raw.convert("RGB")).astype(np.int16)
            if (np.ptp(colors, axis=-1) > COLORED).mean() > COLORED_SHARE:
                return "is coloured, and its red channel is read", "save it in grey, white where the concept is"
    solid = values >= FAINT
    edges = (solid[0], solid[-1], solid[:, 0], solid[:, -1])
    if all(edge.mean() > INVERTED for edge in edges) and solid.mean() < INVERTED:
        return "is white along all edges and dark inside, as if inverted", "make it white where the concept is"
    return None


def _pixels(image: Decoded, from_alpha: bool) -> Image.Image | None:
    """The alpha channel, None where there is none; of a mask file the red channel, as kohya reads it."""
    return image.to_alpha() if from_alpha else image.to_mask()


def find_mask_files(
    subset: SubsetConfig, folder: Folder, images: Collection[Path]
) -> tuple[dict[Path, tuple[Path, ...]], list[Problem]]:
    """The mask files of each image, which may be none or several, and warnings. No file is opened.

    They are in conditioning_data_dir if the subset has one, else next to the image. images: the images' paths. Raises
    `Problems` if conditioning_data_dir cannot be used.
    """
    if subset.conditioning_data_dir is None:
        return folder.masks, []
    named = f"conditioning_data_dir {subset.conditioning_data_dir}"
    if why := out_of_reach(subset.conditioning_data_dir):
        problem = Problem(subset.where, f"{named} cannot be opened: {why}", "let this user enter the folders above it")
    elif not subset.conditioning_data_dir.is_dir():
        problem = Problem(subset.where, f"{named} is not a folder", "name the folder that holds the masks")
    elif subset.conditioning_data_dir.resolve() == subset.image_dir.resolve():
        problem = Problem(subset.where, f"{named} is image_dir itself", "put the masks into a folder of their own")
    else:
        files = [
            path for path in sorted(subset.conditioning_data_dir.iterdir()) if path.suffix.lower() in IMAGE_ENDINGS
        ]
        found = _by_name(files, images)
        used = {file for paths in found.values() for file in paths}
        strays = [file for file in files if file not in used]
        return found, _one(subset, strays, "masks without an image", "they are not used")
    raise Problems([problem])


def _by_name(files: Sequence[Path], images: Collection[Path]) -> dict[Path, tuple[Path, ...]]:
    """The mask files of each image: those of exactly its name, as in kohya's trainer, else those that differ in case or
    the like, or are named as masks next to images are, NAME.mask.png."""
    stems = {image.stem for image in images}
    loose: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if file.stem not in stems:
            named = MASK.fullmatch(file.stem)
            loose[same_name(named[1] if named else file.stem)].append(file)
    exact = {image: tuple(file for file in files if file.stem == image.stem) for image in images}
    return {image: own or tuple(loose[same_name(image.stem)]) for image, own in exact.items()}


def _missing_problems(subset: SubsetConfig, images: Sequence[Path]) -> Iterator[Problem]:
    """masked_loss asks for a mask of every image, as kohya does."""
    if subset.masked_loss and not (subset.alpha_mask and not subset.conditioning_data_dir):
        where = f"in {subset.conditioning_data_dir}" if subset.conditioning_data_dir else "next to them"
        hint = "add NAME.png there" if subset.conditioning_data_dir else "add NAME.mask.png, or set alpha_mask"
        yield Problem(subset.where, f"masked_loss is on, and images have no mask {where}: {some(images)}", hint)


def _missing_warnings(subset: SubsetConfig, images: Sequence[Path]) -> list[Problem]:
    if not subset.alpha_mask or subset.conditioning_data_dir:
        return []
    return _one(subset, images, "images without transparency", "alpha_mask does not mask them")


def _shared_warnings(subset: SubsetConfig, masks: Mapping[Path, Mask]) -> Iterator[Problem]:
    """A warning for each mask file that has the name of several images, such as 01.jpg and 01.png."""
    images: dict[Path, list[Path]] = defaultdict(list)
    for image, mask in masks.items():
        images[mask.path].append(image)
    for mask, several in images.items():
        if len(several) > 1:
            yield Problem(subset.where, f"{mask.name} is the mask of {some(several)}", "rename all but one of them")


def _one(subset: SubsetConfig, paths: Sequence[Path], what: str, hint: str) -> list[Problem]:
    """One warning for all files with the same trouble, if there are any."""
    return [Problem(subset.where, f"{what}: {some(paths)}", hint)] if paths else []
