"""Data of other people's making: batches of loaders, outputs of models, contents of files."""

from .batch import images_and_labels, images_of
from .content import check_archive, check_tensors, parsed_json, text_of
from .logits import TakeLogits, logits_in, logits_of

__all__ = [
    "TakeLogits",
    "check_archive",
    "check_tensors",
    "images_and_labels",
    "images_of",
    "logits_in",
    "logits_of",
    "parsed_json",
    "text_of",
]
