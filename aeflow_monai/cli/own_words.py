"""Messages of the package, which name options of configs, in the words of this command."""

from __future__ import annotations

import re

__all__ = ["in_own_words"]

_OWN_WORDS = (
    (r" with --dataset_dir( <\w+>)?", " behind the verb"),
    (r"--dataset_dir", "the images behind the verb"),
    (r"--output_dir", "-o"),
    (r"--normal_classes, for example \"(\[.*?\])\"", r'--set "normal_classes=\1"'),
    (r"--(layout|test_fraction) (\w+(?:\.\d+)?)", r"--set \1=\2"),
    (r"--(normal_classes|layout|modalities|series|test_fraction)\b", r"--set \1=..."),
    (r"use inference\.yaml, which needs", "use aeflow predict, which needs"),
    (r"`run prepare` of train\.yaml writes", "`aeflow prepare DATA -o LISTED` writes"),
    (r"--overwrite True", "--overwrite"),
    (r"--resume (<a checkpoint>|<its last checkpoint>|\S+\.pt)", "--resume"),
)


def in_own_words(message: str) -> str:
    """Name options as this command takes them.

    Args:
        message: of a part of the package that MONAI's command and Python call too.

    Example:
        >>> in_own_words("Hold patients out with --test_fraction 0.2.")
        'Hold patients out with --set test_fraction=0.2.'
        >>> in_own_words("python -m monai.bundle run --dataset_dir DATA")
        'python -m monai.bundle run --dataset_dir DATA'
    """
    if message.startswith("python -m monai.bundle"):
        return message  # a command of MONAI, which takes MONAI's options
    for pattern, own in _OWN_WORDS:
        message = re.sub(pattern, own, message)
    return message
