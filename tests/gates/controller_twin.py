"""The controller in plain Python, one number at a time: the twin that `PIController` must equal."""

from __future__ import annotations

import math

from fastast.gates import controller as c
from fastast.philox import STREAM_EXPLORE, STREAM_SELECT, random_words, to_uniform


def clamp(x, low, high):
    return max(low, min(x, high))


class Twin:
    def __init__(self, target, selection, seed, explore=0.0):
        self.selection, self.seed, self.explore = selection, seed, explore
        self.debt = self.batch = self.log_threshold = self.slope = self.slip = self.batch_slope = 0.0
        self.starved = self.nan_count = 0
        self.set_target(target)

    def set_target(self, target):
        self.target, self.rate, self.mean_p, self.last_error, self.started = target, target, target, 0.0, False
        self.debt = 0.0
        self.share = (target - self.explore) / (1 - self.explore)

    def decide(self, scores, ids, epoch, valid):
        """The mask, and the distance of every key from the threshold."""
        mask, keys, logs, explored = [False] * len(scores), {}, {}, set()
        for row, score in enumerate(scores):
            if not valid[row]:
                continue
            if not math.isfinite(score):
                mask[row] = True
                self.nan_count += 1
                continue
            u = self.uniform(epoch, ids[row], STREAM_SELECT)
            if self.explore and self.uniform(epoch, ids[row], STREAM_EXPLORE) < self.explore:
                explored.add(row)
            logs[row] = math.log(max(score, c.SMALLEST))
            keys[row] = logs[row] + (-math.log(u) if self.selection == "soft" else c.TIE_BREAK * (u - 0.5))
        best = sorted(keys, key=keys.__getitem__, reverse=True)
        num = len(best)
        self.batch_slope = self.local_slope([keys[row] for row in best])
        threshold = self.log_threshold
        if num and not self.started:
            threshold = self.soft_start(list(logs.values())) if self.selection == "soft" else self.quantile(keys)
        if explored:
            lift = max(threshold, keys[best[0]]) - keys[best[-1]] + 1
            keys = {row: key + lift * (row in explored) for row, key in keys.items()}
            best = sorted(keys, key=keys.__getitem__, reverse=True)
        wanted = sum(key > threshold for key in keys.values())
        low, high = self.limits(num)
        taken = clamp(wanted, low, high)
        used = threshold if taken == wanted else keys[best[min(taken, num - 1)]]
        for row in best[:taken]:
            mask[row] = True
        if self.target == 1.0:
            mask = list(valid)
        self.slip = used - self.log_threshold
        self.p = {row: self.probability(log - used) for row, log in logs.items()}
        return mask, [abs(keys.get(row, math.inf) - threshold) for row in range(len(scores))]

    def uniform(self, epoch, sample_id, stream):
        return float(to_uniform(random_words(self.seed, epoch, int(sample_id), stream)[0]))

    def probability(self, x):
        by_score = math.exp(min(x, 0.0)) if self.selection == "soft" else clamp(x / c.TIE_BREAK + 0.5, 0.0, 1.0)
        return 1.0 if self.target == 1.0 else self.explore + (1 - self.explore) * by_score

    def soft_start(self, logs):
        low, high = min(logs) - 1, max(logs) + 100
        for _ in range(200):
            middle = (low + high) / 2
            mean = sum(math.exp(min(0.0, x - middle)) for x in logs) / len(logs)
            low, high = (middle, high) if mean > self.share else (low, middle)
        return low

    def quantile(self, keys):
        down = sorted(keys.values(), reverse=True)
        place = min(max(self.share * len(down) - 0.5, 0.0), len(down) - 1)
        i = math.floor(place)
        below = down[min(i + 1, len(down) - 1)]
        return down[i] + (below - down[i]) * (place - i)

    def limits(self, num):
        batch = max(self.batch if self.started else num, 1.0)
        half = c.HALF_BAND * max(1.0, self.target * batch)
        share = min(1.0, num / batch)
        starving = self.starved + 1 >= math.floor(max(10.0, 4 / (self.target * batch)))
        low = max(0, math.ceil((self.debt - half) * share + self.target * num), int(starving))
        high = math.floor((self.debt + half) * share + self.target * num)
        low = min(low, num)
        return low, max(low, high)

    def local_slope(self, down):
        if not down:
            return 1e-6
        num, due = len(down), self.share * len(down)
        half = max(1.0, 0.5 * min(due, num - due))
        first = int(max(0, math.floor(due - half)))
        last = int(min(num - 1, math.ceil(due + half)))
        gap = down[min(first, num - 1)] - down[last]
        return clamp(gap * due * (1 - self.share) / max(1, last - first), 1e-6, 1.0)

    def update(self, selected, offered, expected):
        if offered == 0:
            return
        t, mean = self.target, expected / offered
        self.mean_p = self.mean_p + c.BATCH_EMA * (mean - self.mean_p) if self.started else mean
        self.batch = self.batch + c.BATCH_EMA * (offered - self.batch) if self.started else offered
        due = t * self.batch
        limit = 2 * c.HALF_BAND * max(1.0, due)
        self.debt = clamp(self.debt + t * offered - selected, -limit, limit)
        self.rate += c.RATE_EMA * (selected / offered - self.rate)
        horizon = min(c.HORIZON, 5 * max(1.0, due) ** 2 / due)
        goal = t + clamp(self.debt / (horizon * self.batch), -0.5 * t, 0.5 * min(t, 1 - t))
        error = (self.rate - goal) / max(goal * (1 - goal), 1e-6)
        if self.started:
            self.slope *= (self.batch_slope / self.slope) ** c.SLOPE_EMA
            slope = 1 - t if self.selection == "soft" else self.slope
            slope *= t / (t - self.explore)
            k_i = c.K_I * min(1.0, due / 5)
            step = c.SLIP_GAIN * self.slip + slope * (c.K_P * (error - self.last_error) + k_i * error)
            self.log_threshold += clamp(step, -c.MAX_STEP, c.MAX_STEP)
        else:
            self.slope = self.batch_slope
            self.log_threshold += self.slip
        self.last_error = error
        self.starved = 0 if selected else self.starved + 1
        self.started = True
