"""A ring of selected samples on the device: fixed shapes in, full batches out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class Rows(NamedTuple):
    """One full batch, as views of the ring: use them before the next `push`, which may write there."""

    images: Tensor  # [B, C, H, W] channels-last
    labels: Tensor  # int64 [B]
    ids: Tensor  # int64 [B]
    weights: Tensor  # float32 [B]


class SampleQueue(nn.Module):
    """First in, first out, on the device and without a single wait for it.

    `push` moves the selected rows of a batch behind one another (mask, cumulative sum, scatter); `pop` hands out the
    oldest `batch_size` rows without a copy. How many rows wait is known on the device only: `status` is the
    vector to read, late or not, and `check` turns it into the fill. The caller pops only what is there. Several ranks
    move rows between their queues by `remove_newest` and `append`; `moved` counts rows received less rows sent.
    Where the pictures that come change their size, `resize` comes first: rows that wait change with them.

    Args:
        batch_size: rows of a popped batch, B.
        image_shape: (C, H, W) of the pictures, the largest if they change.
        dtype: of the images.
        device: where the ring lives.
        num_batches: capacity in batches.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    weights: Tensor
    pushed: Tensor
    popped: Tensor
    moved: Tensor
    overflow: Tensor

    def __init__(
        self,
        batch_size: int,
        image_shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        num_batches: int = 4,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.capacity = batch_size * num_batches
        rows = self.capacity + 1  # the last takes what is not selected
        counter = torch.zeros((), dtype=torch.int64, device=device)
        for name, value in (
            ("images", torch.zeros(rows, height, width, channels, dtype=dtype, device=device)),
            ("labels", torch.zeros(rows, dtype=torch.int64, device=device)),
            ("ids", torch.zeros(rows, dtype=torch.int64, device=device)),
            ("weights", torch.zeros(rows, device=device)),
            ("pushed", counter),
            ("popped", counter.clone()),
            ("moved", counter.clone()),
            ("overflow", counter.clone()),
        ):
            self.register_buffer(name, value, persistent=False)  # the extra state has the waiting rows alone
        self._block = 0  # the block that pop hands out next
        self._memory = self.images.flatten()  # rings of all sizes start at one address, which CUDA graphs know

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures, pixels."""
        _, height, width, _ = self.images.shape
        return height, width

    @torch.no_grad()
    def resize(self, height: int, width: int) -> None:
        """Resizes the pictures of all rows that wait, bilinearly; the next ones to be pushed are of that size.

        Rows keep their order and their places. Without a wait for the device, so places without a row are resized too.
        """
        old, grows = self.images, height * width > self.images[0, :, :, 0].numel()
        self._set_size(height, width)
        # The rings overlap. In this order no block is written before those that it covers were read.
        firsts = range(0, self.capacity, self.batch_size)
        for first in reversed(firsts) if grows else firsts:
            rows = slice(first, first + self.batch_size)
            pictures = old[rows].permute(0, 3, 1, 2).float()
            pictures = interpolate(pictures, (height, width), mode="bilinear", antialias=True)
            self.images[rows] = pictures.permute(0, 2, 3, 1)

    def _set_size(self, height: int, width: int) -> None:
        """Makes `images` a ring of other pictures over the same memory."""
        shape = (self.capacity + 1, height, width, self.images.shape[-1])
        self.images = self._memory[: math.prod(shape)].view(shape)

    @torch.no_grad()
    def push(self, images: Tensor, labels: Tensor, ids: Tensor, mask: Tensor, weights: Tensor | None = None) -> None:
        """Appends the rows where `mask` is true, in order.

        Rows that do not fit are counted in `overflow`; nothing waiting is overwritten.

        Args:
            images: float [N, C, H, W]; channels-last of the queue's dtype is copied once, others twice.
            labels, ids: int64 [N].
            mask: bool [N].
            weights: float32 [N]; without them 1.
        """
        if weights is None:
            weights = torch.ones_like(labels, dtype=torch.float32)
        place = self.pushed + mask.cumsum(0) - 1
        fits = mask & (place - self.popped < self.capacity)
        slot = torch.where(fits, place % self.capacity, self.capacity)  # [N]
        nhwc = images.to(self.images.dtype).permute(0, 2, 3, 1)
        if images.is_cuda:
            # Not through a view: torch 2.6 compiles that to a copy of the whole ring, out and back.
            self.images.index_copy_(0, slot, nhwc)
        else:
            flat = nhwc.reshape(len(images), -1)  # [N, H * W * C]
            ring = self.images.view(self.capacity + 1, -1)
            # Copied as 32-bit words: half the time of 16-bit elements.
            word = torch.int32 if flat.shape[1] * flat.itemsize % 4 == 0 else flat.dtype
            ring.view(word).index_copy_(0, slot, flat.view(word))
        self.labels.index_copy_(0, slot, labels)
        self.ids.index_copy_(0, slot, ids)
        self.weights.index_copy_(0, slot, weights)
        num_fitting = fits.sum()
        self.pushed += num_fitting
        self.overflow += mask.sum() - num_fitting

    def pop(self) -> Rows:
        """Takes the oldest full batch, without a copy. The caller knows from `check` that it waits."""
        rows = slice(self._block * self.batch_size, (self._block + 1) * self.batch_size)
        self._block = (self._block + 1) % self.num_batches
        self.popped += self.batch_size
        return Rows(self.images[rows].permute(0, 3, 1, 2), self.labels[rows], self.ids[rows], self.weights[rows])

    @torch.no_grad()
    def remove_newest(self, num_rows: int) -> Rows:
        """Removes the newest rows, to be sent to another rank's queue; the caller knows that so many wait.

        Args:
            num_rows: n, at most B.

        Returns:
            Copies of B rows, of which the first n count.
        """
        place = torch.arange(self.batch_size, device=self.pushed.device)
        slot = (self.pushed - num_rows + place) % self.capacity
        rows = Rows(self.images[slot].permute(0, 3, 1, 2), self.labels[slot], self.ids[slot], self.weights[slot])
        self.pushed -= num_rows
        self.moved -= num_rows
        return rows

    def empty_rows(self) -> Rows:
        """B rows of zeros, in the layout of `remove_newest`: to be filled with what another rank sent."""
        size, shape = self.batch_size, self.images.shape[1:]
        return Rows(
            self.images.new_zeros(size, *shape).permute(0, 3, 1, 2),
            *(part.new_zeros(size) for part in (self.labels, self.ids, self.weights)),
        )

    def append(self, rows: Rows, num_rows: int) -> None:
        """Appends the first `num_rows` rows that another rank's queue sent."""
        mask = torch.arange(self.batch_size, device=self.pushed.device) < num_rows
        self.push(rows.images, rows.labels, rows.ids, mask, rows.weights)
        self.moved += num_rows

    def status(self) -> Tensor:
        """int64 [3] on the device: rows pushed (moved ones included), popped and refused so far."""
        return torch.stack((self.pushed, self.popped, self.overflow))

    @staticmethod
    def check(status: np.ndarray) -> int:
        """The number of rows waiting, from a `status` vector read to the host.

        Raises:
            RuntimeError: rows were refused for lack of room, or popped before they were there.
        """
        pushed, popped, overflow = (int(x) for x in status)
        if overflow:
            raise RuntimeError(f"sample queue: {overflow} rows did not fit; pop a batch before pushing more")
        if popped > pushed:
            raise RuntimeError(f"sample queue: {popped} rows popped, but only {pushed} pushed")
        return pushed - popped

    def get_extra_state(self) -> dict[str, Any]:
        """Counters and waiting rows, on the CPU. Waits for the device."""
        status = self.status().tolist()
        rows = self._waiting(status)
        return {"status": status, "moved": int(self.moved)} | {
            name: getattr(self, name)[rows].cpu() for name in Rows._fields
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for counter, value in zip((self.pushed, self.popped, self.overflow), state["status"], strict=True):
            counter.fill_(value)
        self.moved.fill_(state["moved"])
        self._block = state["status"][1] // self.batch_size % self.num_batches
        self._set_size(*state["images"].shape[1:3])
        rows = self._waiting(state["status"])
        for name in Rows._fields:
            getattr(self, name)[rows] = state[name].to(rows.device)

    @staticmethod
    def num_waiting(state: dict[str, Any]) -> int:
        """Rows that wait in a `get_extra_state`."""
        return len(state["ids"])

    @staticmethod
    def reshard(states: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
        """The states of all ranks' queues for another number of ranks: waiting rows are shared out in rank order.

        The first rank counts all selected rows as its own; to the others every row came from elsewhere.
        """
        rows = {name: torch.cat([state[name] for state in states]) for name in Rows._fields}
        popped, num_rows = states[0]["status"][1], len(rows["ids"])
        selected = sum(state["status"][0] - state["moved"] for state in states)
        overflow = sum(state["status"][2] for state in states)
        shares = []
        for rank in range(size):
            mine = slice(rank * num_rows // size, (rank + 1) * num_rows // size)
            pushed = popped + mine.stop - mine.start
            first = rank == 0
            status = [pushed, popped, overflow if first else 0]
            moved = pushed - selected if first else pushed
            shares.append({"status": status, "moved": moved, **{name: rows[name][mine] for name in Rows._fields}})
        return shares

    def _waiting(self, status: list[int]) -> Tensor:
        """Places of the waiting rows in the ring, oldest first."""
        pushed, popped, _ = status
        return torch.arange(popped, pushed, device=self.pushed.device) % self.capacity
