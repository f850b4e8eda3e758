"""Reading and resizing images under the name that scripts outside the trainer use."""

from trainer.images.decode import Size, decode, read_picture
from trainer.images.resize import default_interpolation, fit, to_tensor

__all__ = ["Size", "decode", "default_interpolation", "fit", "read_picture", "to_tensor"]
