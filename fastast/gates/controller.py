"""A PI controller that holds the share of selected samples at its target, with all of its state on the device.

Every sample has a key: `log s - log u` (soft rule) or `log s` with a tie-break of one part in a thousand (hard rule).
It is selected if its key exceeds the log threshold, which a PI controller in velocity form moves:

    debt       = sum of (target * offered - selected)
    goal       = target + bounded(debt / (horizon * batch))
    error      = (rate - goal) / (goal (1 - goal))                 rate: moving average of selected / offered
    log theta += slip + slope * (K_P * (error - last error) + K_I * error)

A limiter keeps every batch's count where the debt stays within HALF_BAND * max(1, target * batch) samples, by taking
the batch's threshold between two of its own keys. So the activation over at least 200 batches in a row, with at least
200 / target offered samples, is within 5 % of target whatever the scores do, also right after they change their scale.
(Of several ranks each needs target * batch of 0.1 or more: a rank cannot select a fraction of a sample.) In a steady
state the limiter acts on 0 to 3 % of the batches. `slip` is its move, fed back (anti-windup).

With an explore share e a sample is selected whatever its score with probability e: its key then goes before all
others. The rule works on the rest, and selects the share (target - e) / (1 - e) of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastast.errors import InputError
from fastast.philox import STREAM_EXPLORE, STREAM_SELECT, random_words, to_uniform

SELECTIONS = ("soft", "hard")

K_P = 0.5
K_I = 0.1  # less when a batch selects few: its rate is then mostly noise
HORIZON = 50.0  # batches in which a debt is worked off, fewer when a batch selects few
RATE_EMA = 0.1
BATCH_EMA = 0.02
SLOPE_EMA = 0.05
SLIP_GAIN = 0.2
MAX_STEP = 0.5  # of the log threshold in one batch: a step of 1e4 in scale takes under 20 batches
HALF_BAND = 4.5  # two of them are 4.5 % of the shortest run of batches that the guarantee covers
TIE_BREAK = 1e-3
SMALLEST = 1e-37  # scores below it, and 0, count as this


class PIController(nn.Module):
    """Selects samples by score so that a share `target` of those offered is selected.

    Soft: p = min(1, s / threshold), by a uniform number keyed by (seed, epoch, id). Hard: s > threshold. With an
    explore share e the probability becomes e + (1 - e) p, by a second uniform number.
    Only ratios of scores matter, so any scale will do. A sample whose score is NaN or infinite is selected, counted
    in `nan_count`, and changes nothing else.

    No operation waits for the device and every shape is fixed: `decide` and `update` compile with `fullgraph=True`.
    All work over the last dimension, so buffers of shape [S] run S controllers on scores [S, B]. Move the module to
    the device of the scores with `.to(device)`.

    Args:
        target: share of the offered samples to select, in (0, 1]; 1 selects every sample.
        selection: "soft" or "hard".
        seed: keys the uniform numbers.
        explore: share of the offered samples that is selected whatever the score, in [0, target).

    Attributes:
        rate: moving average of selected / offered, 0-dim float32.
        mean_probability: moving average of `probability`, 0-dim float32, for `importance_weights`.
        nan_count: NaN or infinite scores so far, 0-dim int64.
        probability: selection probability of each sample in the last batch, float32 [B]. It is exact while the
            limiter rests.

    Raises:
        InputError: target is outside (0, 1], explore is outside [0, target), or selection is unknown.
    """

    RANK_COUNTS = ("nan_count",)

    target: Tensor
    log_threshold: Tensor
    log_slope: Tensor
    rate: Tensor
    mean_probability: Tensor
    last_error: Tensor
    debt: Tensor
    batch: Tensor
    slip: Tensor
    batch_log_slope: Tensor
    seen: Tensor
    nan_count: Tensor
    starved: Tensor
    started: Tensor

    def __init__(self, target: float, *, selection: str = "soft", seed: int = 0, explore: float = 0.0) -> None:
        super().__init__()
        if selection not in SELECTIONS:
            raise InputError(f"selection {selection!r} is unknown: choose one of {', '.join(SELECTIONS)}")
        self.selection = selection
        self.seed = seed
        self.explore = explore
        self.probability = torch.empty(0)
        floats = ("target", "log_threshold", "log_slope", "rate", "mean_probability", "last_error", "debt")
        for name in (*floats, "batch", "slip", "batch_log_slope"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("seen", "nan_count", "starved"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.set_target(target)

    @property
    def threshold(self) -> Tensor:
        """The threshold on the score, 0-dim float32."""
        return self.log_threshold.exp()

    def set_target(self, target: float) -> None:
        """Changes the target; the next batch then solves for a new threshold. Shapes stay as they are.

        The debt towards the old target is dropped: in units of the new one it could take hundreds of batches.
        """
        if not 0.0 < target <= 1.0:
            raise InputError(f"target {target} is outside (0, 1]: give the share of samples to select, such as 0.1")
        if not 0.0 <= self.explore < target:
            raise InputError(f"explore share {self.explore} is outside [0, target): give less than the target {target}")
        self.target.fill_(target)
        self.rate.fill_(target)
        self.mean_probability.fill_(target)
        self.last_error.zero_()
        self.debt.zero_()
        self.started.zero_()

    @torch.no_grad()
    def follow(self, target: Tensor) -> None:
        """Takes the next value of a target that moves a little from batch to batch; the threshold moves on with it.

        Args:
            target: 0-dim float32 on the device, in (explore, 1].
        """
        self.target.copy_(target)
        for mean in (self.rate, self.mean_probability):
            mean.copy_(torch.where(self.started, mean, target))

    @torch.no_grad()
    def select(self, scores: Tensor, ids: Tensor | None = None, epoch: int | Tensor = 0) -> Tensor:
        """Decides on one batch, then learns from it.

        Args:
            scores: float [B], larger is more significant.
            ids: int64 [B] sample ids that key the uniform numbers; without them the number of scores seen does.
            epoch: int or 0-dim int64, keys the uniform numbers together with the ids.

        Returns:
            bool [B], true for the selected samples.
        """
        mask = self.decide(scores, ids, epoch)
        usable = torch.isfinite(scores)
        self.update((mask & usable).sum(-1), usable.sum(-1), (self.probability * usable).sum(-1))
        return mask

    @torch.no_grad()
    def decide(
        self, scores: Tensor, ids: Tensor | None = None, epoch: int | Tensor = 0, valid: Tensor | None = None
    ) -> Tensor:
        """Decides on one batch and leaves the learning to `update`.

        Args:
            scores, ids, epoch: as for `select`.
            valid: bool [B]; samples where it is false are never selected and count nowhere.

        Returns:
            bool [B], true for the selected samples.
        """
        size = scores.shape[-1]
        place = torch.arange(size, device=scores.device)
        if ids is None:
            ids = self.seen[..., None] + place
        if valid is None:
            valid = torch.ones_like(scores, dtype=torch.bool)
        uniform = to_uniform(random_words(self.seed, epoch, ids, STREAM_SELECT)[0]).float()  # [B]
        scores = scores.float()
        usable = torch.isfinite(scores)
        unusable, counted = valid & ~usable, valid & usable
        num = counted.sum(-1)
        log_s = torch.where(counted, scores, 1.0).clamp(min=SMALLEST).log()
        if self.selection == "soft":
            keys = log_s - uniform.log()
        else:
            keys = log_s + TIE_BREAK * (uniform - 0.5)
        keys = keys.masked_fill(~counted, -torch.inf)
        ranked, order = keys.sort(dim=-1, descending=True)

        share = (self.target - self.explore) / (1 - self.explore)  # of the samples that are not explored
        if self.selection == "soft":
            first = _soft_start(log_s.masked_fill(~counted, -torch.inf), share, num)
        else:
            first = _hard_start(ranked, share, num)
            self.batch_log_slope.copy_(_hard_log_slope(ranked, share, num))
        log_threshold = torch.where(self.started | (num == 0), self.log_threshold, first)
        if self.explore:
            draw = to_uniform(random_words(self.seed, epoch, ids, STREAM_EXPLORE)[0]).float()
            keys = torch.where(counted & (draw < self.explore), _lifted(keys, counted, log_threshold), keys)
            ranked, order = keys.sort(dim=-1, descending=True)
        wanted = (keys > log_threshold[..., None]).sum(-1)
        lowest, highest = self._limits(num)
        taken = torch.minimum(torch.maximum(wanted, lowest), highest)
        # Where the limiter acts, the threshold is the first key left out, as in priority sampling.
        used = torch.where(taken == wanted, log_threshold, _at(ranked, taken, num))
        # By rank, not by key: equal keys must not break the limits.
        mask = torch.zeros_like(counted).scatter(-1, order, place < taken[..., None])

        if self.selection == "soft":
            probability = (log_s - used[..., None]).clamp(max=0.0).exp()
        else:
            probability = ((log_s - used[..., None]) / TIE_BREAK + 0.5).clamp(0.0, 1.0)
        if self.explore:
            probability = self.explore + (1 - self.explore) * probability
        certain = unusable | (valid & (self.target >= 1.0)[..., None])
        self.probability = (probability * counted).masked_fill(certain, 1.0)
        self.slip.copy_(used - self.log_threshold)
        self.seen += size
        self.nan_count += unusable.sum(-1)
        return mask | certain

    @torch.no_grad()
    def update(
        self,
        selected: Tensor,
        offered: Tensor,
        expected: Tensor,
        slip: Tensor | None = None,
        log_slope: Tensor | None = None,
    ) -> None:
        """Learns from one decided batch. With `offered` 0 nothing changes.

        Args:
            selected, offered: 0-dim counts of samples with a usable score, summed over all ranks.
            expected: their sum of `probability`.
            slip, log_slope: means over all ranks of the buffers `slip` and `batch_log_slope` that `decide` left,
                weighted by the ranks' offered samples; by default this rank's own.
        """
        slip = self.slip if slip is None else slip
        log_slope = self.batch_log_slope if log_slope is None else log_slope
        selected, offered = selected.float(), offered.float()
        target, first = self.target, ~self.started
        batch = torch.where(first, offered, self.batch + BATCH_EMA * (offered - self.batch)).clamp(min=1.0)
        due = target * batch  # samples to select in a batch
        limit = 2 * HALF_BAND * due.clamp(min=1.0)
        debt = torch.clamp(self.debt + (target * offered - selected), -limit, limit)
        rate = self.rate + RATE_EMA * (selected / offered.clamp(min=1.0) - self.rate)
        mean = expected / offered.clamp(min=1.0)
        mean = torch.where(first, mean, self.mean_probability + BATCH_EMA * (mean - self.mean_probability))

        # The standard deviation of the debt, sqrt(due * horizon / 2), stays near a third of the limiter's band.
        horizon = (5 * due.clamp(min=1.0).square() / due).clamp(max=HORIZON)
        most = 0.5 * torch.minimum(target, 1 - target)
        goal = target + torch.clamp(debt / (horizon * batch), -0.5 * target, most)
        error = (rate - goal) / (goal * (1 - goal)).clamp(min=1e-6)
        log_slope = torch.where(first, log_slope, self.log_slope + SLOPE_EMA * (log_slope - self.log_slope))
        slope = 1 - target if self.selection == "soft" else log_slope.exp()
        slope = slope * target / (target - self.explore)  # explored samples do not answer to the threshold
        k_i = K_I * (due / 5).clamp(max=1.0)
        step = SLIP_GAIN * slip + slope * (K_P * (error - self.last_error) + k_i * error)
        step = torch.where(first, slip, step.clamp(-MAX_STEP, MAX_STEP))

        some = offered > 0
        for buffer, value in (
            (self.batch, batch),
            (self.debt, debt),
            (self.rate, rate),
            (self.mean_probability, mean),
            (self.last_error, error),
            (self.log_slope, log_slope),
            (self.log_threshold, self.log_threshold + step),
            (self.starved, torch.where(selected > 0, 0, self.starved + 1)),
            (self.started, torch.ones_like(first)),
        ):
            buffer.copy_(torch.where(some, value, buffer))

    def _limits(self, num: Tensor) -> tuple[Tensor, Tensor]:
        """Least and most samples that a batch with `num` usable scores may select."""
        batch = torch.where(self.started, self.batch, num.float()).clamp(min=1.0)
        due = self.target * batch
        half = HALF_BAND * due.clamp(min=1.0)
        share = (num / batch).clamp(max=1.0)  # this rank's part of the debt
        starving = self.starved + 1 >= (4 / due).clamp(min=10.0).floor()
        lowest = ((self.debt - half) * share + self.target * num).ceil().clamp(min=0.0).long()
        lowest = torch.minimum(torch.maximum(lowest, starving.long()), num)
        highest = ((self.debt + half) * share + self.target * num).floor().long()
        return lowest, torch.maximum(highest, lowest)


def _at(ranked: Tensor, index: Tensor, num: Tensor) -> Tensor:
    """The entry of each row of `ranked` at `index`, which is held among its first `num`."""
    index = torch.minimum(index, num - 1).clamp(min=0)
    return ranked.gather(-1, index[..., None])[..., 0]


def _lifted(keys: Tensor, counted: Tensor, log_threshold: Tensor) -> Tensor:
    """The keys moved up by one amount, so that all of them lie above the threshold and above every key unmoved."""
    highest = torch.maximum(keys.amax(-1), log_threshold)
    lowest = keys.masked_fill(~counted, torch.inf).amin(-1)
    lift = torch.where(counted.any(-1), highest - lowest + 1.0, 0.0)
    return keys + lift[..., None]


def _hard_start(ranked: Tensor, target: Tensor, num: Tensor) -> Tensor:
    """The quantile: the log threshold above which a share `target` of the keys lies."""
    place = torch.minimum((target * num - 0.5).clamp(min=0.0), num - 1.0)
    above, below = _at(ranked, place.floor().long(), num), _at(ranked, place.ceil().long(), num)
    return above + (below - above) * (place - place.floor())


def _soft_start(log_s: Tensor, target: Tensor, num: Tensor) -> Tensor:
    """Solves mean(min(1, s / theta)) = target for log theta, in closed form.

    The sum of min(1, s / theta) is the least over k of k + (sum of all but the k largest s) / theta. Each k has its
    own root, and the smallest root solves the whole. Entries of `log_s` that do not count are -inf.
    """
    log_s = log_s.sort(dim=-1, descending=True).values
    log_rest = log_s.flip(-1).logcumsumexp(-1).flip(-1)
    k = torch.arange(log_s.shape[-1], device=log_s.device)
    left = (target * num)[..., None] - k
    root = log_rest - left.clamp(min=1e-6).log()
    return root.masked_fill((left <= 0) | (k >= num[..., None]), torch.inf).amin(-1)


def _hard_log_slope(ranked: Tensor, target: Tensor, num: Tensor) -> Tensor:
    """Log of the step of the log threshold that moves the logit of the rate by about 1, from the keys near it."""
    due = target * num
    half = (0.5 * torch.minimum(due, num - due)).clamp(min=1.0)
    first = (due - half).floor().clamp(min=0.0)
    last = torch.minimum((due + half).ceil(), (num - 1.0).clamp(min=0.0))
    gap = _at(ranked, first.long(), num) - _at(ranked, last.long(), num)
    slope = gap * due * (1 - target) / (last - first).clamp(min=1.0)
    return slope.clamp(1e-6, 1.0).nan_to_num(1e-6).log()
