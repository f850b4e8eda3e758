"""Masked loss against kohya's own functions, where SD_SCRIPTS_DIR has them: the formula, and alpha's geometry."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kohya_source import kohya_functions
from trainer.config import TrainConfig
from trainer.data.masks import latent_mask
from trainer.flow import LossSettings, sample_losses
from trainer.images.decode import decode
from trainer.images.resize import fit


def masks(count: int, width: int, height: int) -> list[Image.Image]:
    """Grey masks with every value, soft edges and holes."""
    rng = np.random.default_rng(3)
    grey = rng.integers(0, 256, (count, height, width)).astype(np.uint8)
    grey[:, : height // 3] = 255
    grey[:, :, : width // 4] = 0
    return [Image.fromarray(each) for each in grey]


@pytest.mark.parametrize("source", ["conditioning_images", "alpha_masks"])
@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
def test_the_loss_inside_a_mask_is_kohyas(source: str, loss_type: str) -> None:
    (apply,) = kohya_functions("custom_train_functions.py", "apply_masked_loss", torch=torch)
    found = masks(3, 96, 64)
    pixels = torch.stack([torch.from_numpy(np.array(mask, np.float32) / 255) for mask in found])
    theirs = {source: pixels if source == "alpha_masks" else (pixels * 2 - 1)[:, None].expand(-1, 3, -1, -1)}
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 16, 8, 12, generator=generator) for _ in range(2))
    sigmas, config = torch.rand(3, generator=generator), TrainConfig(loss_type=loss_type).select(LossSettings)
    columns = prediction.reshape(-1, 1), target.reshape(-1, 1), sigmas.repeat_interleave(prediction[0].numel())
    each = sample_losses(*columns, config).view_as(prediction)
    expected = apply(each, theirs).mean((1, 2, 3))
    weights = torch.stack([latent_mask(mask, flip=False)[None] for mask in found])
    torch.testing.assert_close(
        sample_losses(prediction, target, sigmas, config, weights), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", [(300, 200), (1024, 640), (96, 64)])
def test_alpha_is_cropped_as_kohya_does(size: tuple[int, int], tmp_path) -> None:
    (trim,) = kohya_functions(
        "train_util.py",
        "trim_and_resize_if_required",
        resize_image=resized_by_us,
        BucketManager=type("BucketManager", (), {"get_crop_ltrb": staticmethod(lambda *_: None)}),
    )
    (mask,) = masks(1, *size)
    image = Image.new("RGB", size, (120, 10, 40))
    image.putalpha(mask)
    image.save(tmp_path / "x.png")
    scale = max(96 / size[0], 64 / size[1])
    resized = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
    theirs, _, _ = trim(False, np.array(image), (96, 64), resized)
    crop = ((resized[0] - 96) // 2, (resized[1] - 64) // 2)
    alpha = decode((tmp_path / "x.png").read_bytes()).to_alpha()
    assert alpha is not None
    ours = np.array(fit(alpha, resized, crop, (96, 64)))
    assert np.abs(ours.astype(int) - theirs[:, :, 3].astype(int)).max() == 0


def resized_by_us(image: np.ndarray, _width: int, _height: int, *to: int) -> np.ndarray:
    """Stands in for kohya's resize_image, which is OpenCV's; how ours resizes is tested with images."""
    size = (to[0], to[1])
    channels = [fit(Image.fromarray(image[:, :, index]), size, (0, 0), size) for index in range(4)]
    return np.stack([np.array(channel) for channel in channels], 2)
