"""Pictures in and out: guarded decoding, resizing, colour correction, atomic writing, inputs of the command line.

Importing this package imports no torch; the colour correction needs it: `from varsr_engine.imaging.color import ...`.
"""

from varsr_engine.imaging.files import ImageJob, alpha_safe, create_folders, find_images
from varsr_engine.imaging.formats import READABLE_EXTENSIONS, WRITABLE_FORMATS, writable_format
from varsr_engine.imaging.picture import Picture, ReadLimits
from varsr_engine.imaging.reading import ImageLike, picture_from, read_picture
from varsr_engine.imaging.resizing import resize_alpha, resize_rgb, to_network_input
from varsr_engine.imaging.writing import encode_picture, losses, write_picture

__all__ = [
    "READABLE_EXTENSIONS",
    "WRITABLE_FORMATS",
    "ImageJob",
    "ImageLike",
    "Picture",
    "ReadLimits",
    "alpha_safe",
    "create_folders",
    "encode_picture",
    "find_images",
    "losses",
    "picture_from",
    "read_picture",
    "resize_alpha",
    "resize_rgb",
    "to_network_input",
    "writable_format",
    "write_picture",
]
