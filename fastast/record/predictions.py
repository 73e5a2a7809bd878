"""What the network said of every validation picture in the last evaluation."""

from __future__ import annotations

import numpy as np
import torch

from fastast.atomic_files import write_whole
from fastast.data import Catalog
from fastast.distributed.ranks import Ranks
from fastast.feed import Batch
from fastast.record.columns import write_columns
from fastast.run_folder import RunFolder


class LastPredictions:
    """The most probable class of each picture and its probability, collected on the device without waiting for it.

    Args:
        num_pictures: in the validation set.
        device: of the logits.
    """

    def __init__(self, num_pictures: int, device: torch.device) -> None:
        # 0: not delivered, else the class + 1, so that ranks add up. The last place takes the rows of padding.
        self._class = torch.zeros(num_pictures + 1, dtype=torch.int32, device=device)
        self._probability = torch.zeros(num_pictures + 1, dtype=torch.float32, device=device)

    def clear(self) -> None:
        """Forgets the last evaluation."""
        self._class.zero_()
        self._probability.zero_()

    def add(self, batch: Batch, logits: torch.Tensor) -> None:
        """Takes in a batch and its logits [B, C] float32."""
        ids = torch.where(batch.valid, batch.ids, len(self._class) - 1)
        predicted = logits.argmax(1)  # [B], the first of equal ones, as in `EvalStep`
        top = logits.gather(1, predicted[:, None])[:, 0]
        self._class[ids] = predicted.int() + 1
        self._probability[ids] = torch.exp(top - logits.logsumexp(1))

    def merged(self, ranks: Ranks) -> dict[str, np.ndarray]:
        """Columns by id, of all ranks: `predicted` int32[N], -1 where none was delivered; `probability` float32[N]."""
        predicted, probability = ranks.all_reduce(self._class.clone()), ranks.all_reduce(self._probability.clone())
        return {"predicted": predicted[:-1].cpu().numpy() - 1, "probability": probability[:-1].cpu().numpy()}


def write_predictions(folder: RunFolder, catalog: Catalog, columns: dict[str, np.ndarray], epoch: int) -> None:
    """Writes `predictions.npz`: what an epoch's evaluation said of each validation picture.

    Arrays of N pictures: `label` int32; `predicted` int32, the most probable class, -1 for a picture that could not be
    decoded; `probability` float32 of that class; paths as in `samples.npz`; and `epoch` int32[1].
    """
    columns = {"epoch": np.array([epoch], np.int32), "label": catalog.labels.astype(np.int32), **columns}
    write_whole(folder.predictions, lambda file: write_columns(file, columns, catalog))
