"""The colours of PASCAL VOC's label pictures."""

import numpy as np


def voc_palette() -> np.ndarray:
    """The colour map of PASCAL VOC, uint8 [256, 3].

    The bits of the class number are spread over red, green and blue.
    """
    number = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((number >> (3 * bit + channel) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colours
