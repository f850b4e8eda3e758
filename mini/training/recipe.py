"""Every number of every stage, so that a recipe determines the model.

Schedules are counted in steps, never in seconds: a slower machine takes longer but makes the same model. Batch sizes
and image counts are per process, unless they say "in total".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One way to train the model. `FULL` makes the shipped one; `TINY` runs every stage on a CPU in seconds.

    The names and values of the fields are part of the model card's SHA-256.
    """

    name: str
    seed: int = 0
    size: int = 256  # pixels, height and width of every image
    compile: bool = True  # torch.compile the training steps; if false, everything runs eagerly

    # Images of the world.
    base_pictures: int = 98_304  # in total, to train the autoencoder and the transformer
    held_out_pictures: int = 512  # in total, of the same kind with another seed, for validation only
    judge_pictures: int = 49_152  # in total, to train the judge
    judge_held_out_pictures: int = 2_048  # in total, to measure the judge's accuracy
    scene_batch: int = 32  # images rendered at once; they share a place
    supersampling: int = 2  # samples per pixel along each axis
    scene_processes: int = 14  # that make scenes for each process; 0: the process makes them itself
    sheet_pictures: int = 48
    photo_size: int = 1_024  # pixels, of the concepts' images in flux_data
    photo_supersampling: int = 3

    # Autoencoder: diffusers' AutoencoderKL with FLUX's latent constants.
    autoencoder_widths: tuple[int, ...] = (64, 64, 128, 128)
    autoencoder_layers: int = 2  # per block
    autoencoder_groups: int = 32  # of the group norms
    latent_channels: int = 16
    autoencoder_steps: int = 4_300
    autoencoder_crop: int = 128  # pixels
    autoencoder_crop_share: float = 0.75  # share of the steps on crops; full images after that
    autoencoder_fold_share: float = 0.80  # share of the steps until the latents' scale is fixed; then only the decoder
    autoencoder_crop_batch: int = 64
    autoencoder_picture_batch: int = 16
    autoencoder_warmup: int = 100  # steps
    autoencoder_learning_rate: float = 1e-3
    decoder_learning_rate: float = 4e-4  # after the fold
    autoencoder_betas: tuple[float, float] = (0.9, 0.99)
    autoencoder_ema: float = 0.999
    autoencoder_loss: tuple[float, float, float] = (1.0, 4.0, 0.5)  # weights of L1, squared and gradient error
    decoder_loss: tuple[float, float, float] = (0.25, 20.0, 0.25)  # the same, after the fold
    autoencoder_kl: float = 1e-4  # weight of the mean KL divergence per latent value
    autoencoder_validations: int = 8  # evenly spaced, the last one at the end
    latent_moment_pictures: int = 2_048  # to measure the mean and standard deviation of the latents
    encoding_batch: int = 128

    # Text encoders, trained jointly with the transformer.
    text_length: int = 64  # T5 tokens
    t5_width: int = 256
    t5_layers: int = 4
    t5_heads: int = 4
    t5_head_width: int = 64
    t5_feed_forward: int = 512
    clip_width: int = 128
    clip_layers: int = 2
    clip_heads: int = 2
    clip_feed_forward: int = 512

    # Transformer: FLUX.1's architecture; joint width is t5_width, pooled width is clip_width.
    transformer_heads: int = 3
    transformer_head_width: int = 128
    transformer_double_blocks: int = 3
    transformer_single_blocks: int = 6
    transformer_axes: tuple[int, int, int] = (16, 56, 56)  # rotary widths: text index, row, column
    transformer_steps: int = 9_000  # may change when training resumes: schedules depend on step / steps
    transformer_batch: int = 512
    transformer_warmup: int = 300  # steps
    transformer_constant_share: float = 0.4  # share of the steps before the cosine decay
    transformer_final_rate: float = 0.02  # share of the learning rate at the end
    transformer_learning_rate: float = 1.1e-3
    text_learning_rate: float = 5.5e-4
    transformer_betas: tuple[float, float] = (0.9, 0.95)
    transformer_weight_decay: float = 0.01
    transformer_gradient_norm: float = 1.0  # gradients are clipped to it
    transformer_ema: float = 0.9995
    sigma_shift: float = 0.5  # sigma = sigmoid(normal + shift)
    uniform_sigmas: float = 0.1  # share of sigmas that are uniform instead
    caption_dropout: float = 0.1  # share of captions replaced by the empty caption
    transformer_validations: int = 8  # evenly spaced, the last one at the end
    validation_batch: int = 128

    # Guidance distillation: the guidance input learns the effect of classifier-free guidance.
    guidance_steps: int = 1_000
    guidance_batch: int = 256
    guidance_pictures: int = 16_384  # the first of the base images
    guidance_learning_rate: float = 2e-4  # decays linearly
    guidance_warmup: int = 50  # steps
    guidance_ema: float = 0.99
    guidance_range: tuple[float, float] = (1.0, 6.0)
    sampling_steps: int = 20

    # Judge: a classifier trained on the labels of the renders.
    judge_steps: int = 4_500  # twelve epochs
    judge_batch: int = 128
    judge_learning_rate: float = 2e-3
    judge_warmup: int = 100  # steps
    judge_weight_decay: float = 0.05
    judge_validations: int = 4
    judge_redrawn_share: float = 0.35  # share of the images that are also reconstructed by the autoencoder
    judge_latent_noise: float = 0.35  # maximum standard deviation of the noise on their scaled latents

    # Model card.
    card_prompts: int = 200  # maximum number of held-out prompts
    card_sheet: int = 24  # images on the contact sheet

    @property
    def latent_size(self) -> int:
        """Height and width of the latents of an image."""
        return self.size // 8


FULL = Recipe("full")
TINY = Recipe(
    "tiny",
    size=64,
    compile=False,
    base_pictures=8,
    held_out_pictures=8,
    judge_pictures=8,
    judge_held_out_pictures=8,
    scene_batch=4,
    supersampling=1,
    scene_processes=0,
    sheet_pictures=4,
    photo_size=32,
    photo_supersampling=1,
    autoencoder_widths=(32, 32, 32, 32),
    autoencoder_layers=1,
    autoencoder_steps=10,
    autoencoder_crop=32,
    autoencoder_crop_batch=4,
    autoencoder_picture_batch=2,
    autoencoder_warmup=2,
    autoencoder_validations=2,
    latent_moment_pictures=8,
    encoding_batch=4,
    t5_width=32,
    t5_layers=1,
    t5_heads=2,
    t5_head_width=16,
    t5_feed_forward=64,
    clip_width=32,
    clip_layers=1,
    clip_heads=2,
    clip_feed_forward=64,
    transformer_heads=1,
    transformer_double_blocks=1,
    transformer_single_blocks=1,
    transformer_steps=6,
    transformer_batch=4,
    transformer_warmup=2,
    transformer_validations=2,
    validation_batch=4,
    guidance_steps=4,
    guidance_batch=2,
    guidance_pictures=4,
    guidance_warmup=1,
    sampling_steps=2,
    judge_steps=6,
    judge_batch=4,
    judge_warmup=1,
    judge_validations=2,
    card_prompts=2,
    card_sheet=2,
)
RECIPES = {recipe.name: recipe for recipe in (FULL, TINY)}
