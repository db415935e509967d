"""Digits: 1,797 images of handwritten digits, 8 by 8, that come inside scikit-learn."""

from __future__ import annotations

import torch

from gradlab.data.in_memory import Samples, TensorData

_WHITE = 16.0  # the largest value of a pixel


class Digits(TensorData):
    """Handwritten digits as rows of 64 numbers, or as images; the targets are 0 to 9."""

    class_names = tuple("0123456789")

    def __init__(
        self,
        batch_size: int = 64,
        val_fraction: float = 0.2,
        image: bool = False,
        standardize: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Choose them.

        Args:
            batch_size: samples in a batch.
            val_fraction: the share that is kept for validation.
            image: inputs of shape [1, 8, 8] instead of [64].
            standardize: mean 0 and standard deviation 1 over all training pixels; without, pixels lie in [0, 1].
            seed: decides the split and the order of the training samples.
            num_workers: processes that load batches; 0 is fastest, since all is in memory.
        Raises:
            UsageError: an argument that cannot be.
        """
        super().__init__(batch_size=batch_size, val_fraction=val_fraction, seed=seed, num_workers=num_workers)
        self.image = image
        self.standardize = standardize

    def samples(self) -> tuple[Samples, Samples]:
        """Inputs float32 [n, 64] or [n, 1, 8, 8], targets int64 [n]."""
        from sklearn.datasets import load_digits  # takes a second to import

        pixels, labels = load_digits(return_X_y=True)
        inputs = torch.from_numpy(pixels).float() / _WHITE
        if self.image:
            inputs = inputs.unflatten(1, (1, 8, 8))
        (train, train_labels), (val, val_labels) = self.split(inputs, torch.from_numpy(labels).long())
        if self.standardize:
            mean, std = train.mean(), train.std()
            train, val = (train - mean) / std, (val - mean) / std
        return (train, train_labels), (val, val_labels)
