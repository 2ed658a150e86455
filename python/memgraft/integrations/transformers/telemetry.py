"""What gates and updates do, for hits and misses apart and by order; off by default."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from memgraft.config import MAX_ORDER
from memgraft.errors import GraftError
from memgraft.integrations.transformers.families import find_decoder, unwrap
from memgraft.integrations.transformers.runtime import runtimes_of
from memgraft.nn.graft_layer import Observer

NUM_BINS = 1000


class SiteStatistics:
    """Sums over positions at one site, by order (0 = miss), float64 on the model's device.

    Attributes:
        count: positions, (17,).
        gates: histogram of the gate over [0, 1], (17, bins).
        gate_sum: (17,).
        ratio_sum: sum of update norm over hidden norm, (17,).
        changed: channels with an update that is not 0, (17,).
        swallowed: those whose hidden state stayed as it was, (17,).
    """

    def __init__(self, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            # MPS has no float64.
            kind = torch.float32 if device.type == "mps" else torch.float64
            return torch.zeros(MAX_ORDER + 1, *shape, dtype=kind, device=device)

        self.count, self.gate_sum, self.ratio_sum = zeros(), zeros(), zeros()
        self.changed, self.swallowed = zeros(), zeros()
        self.gates = zeros(NUM_BINS)

    @torch.no_grad()
    def add(
        self,
        orders_BT: Tensor,
        live_BT: Tensor,
        hidden_BTSD: Tensor,
        alpha_BTS1: Tensor,
        update: Tensor,
        written: Tensor,
    ) -> None:
        """Adds one call's positions."""
        orders = orders_BT[live_BT].long()
        kind = self.count.dtype
        hidden, update, written = hidden_BTSD[live_BT], update[live_BT], written[live_BT]
        gates = alpha_BTS1[live_BT].mean(dim=(1, 2))
        ratio = update.flatten(1).norm(dim=1) / hidden.float().flatten(1).norm(dim=1).clamp_min(1e-12)
        changed = update != 0
        same = changed & (written == hidden)
        self.count.index_add_(0, orders, torch.ones_like(gates, dtype=kind))
        self.gate_sum.index_add_(0, orders, gates.to(kind))
        self.ratio_sum.index_add_(0, orders, ratio.to(kind))
        self.changed.index_add_(0, orders, changed.sum(dim=(1, 2)).to(kind))
        self.swallowed.index_add_(0, orders, same.sum(dim=(1, 2)).to(kind))
        bins = (gates * NUM_BINS).long().clamp_(0, NUM_BINS - 1)
        self.gates.view(-1).index_add_(0, orders * NUM_BINS + bins, torch.ones_like(gates, dtype=kind))

    def summary(self) -> dict[str, float]:
        """The figures of ``hit``, ``miss`` and each order seen."""
        groups = {"hit": list(range(1, MAX_ORDER + 1)), "miss": [0]}
        groups |= {f"order{order}": [order] for order in range(1, MAX_ORDER + 1)}
        found: dict[str, float] = {}
        for group, orders in groups.items():
            count = float(self.count[orders].sum())
            if count == 0:
                continue
            histogram = self.gates[orders].sum(dim=0).cumsum(dim=0)
            found[f"{group}/positions"] = count
            found[f"{group}/gate_mean"] = float(self.gate_sum[orders].sum()) / count
            for percent in (10, 90):
                place = int(torch.searchsorted(histogram, histogram.new_tensor(count * percent / 100)))
                found[f"{group}/gate_p{percent}"] = (min(place, NUM_BINS - 1) + 0.5) / NUM_BINS
            found[f"{group}/injected_norm"] = float(self.ratio_sum[orders].sum()) / count
            changed = float(self.changed[orders].sum())
            found[f"{group}/swallowed"] = float(self.swallowed[orders].sum()) / changed if changed else 0.0
        return found


class Telemetry:
    """Statistics of the calls made while it records.

    Attributes:
        sites: by graft name and site.
        banks: by graft name the fingerprint of the bank that it reads, and of the one that it was trained on where that
            is another (``load_graft(..., rows="any")``).
    """

    def __init__(self) -> None:
        self.banks: dict[str, dict[str, str]] = {}
        self.sites: dict[tuple[str, int], SiteStatistics] = {}

    def observer(self, name: str, site: int, side: Any) -> Observer:
        """A callback for one site's graft layer in one call."""

        def observe(hidden: Tensor, alpha: Tensor, update: Tensor, written: Tensor) -> None:
            statistics = self.sites.get((name, site))
            if statistics is None:
                statistics = self.sites[name, site] = SiteStatistics(hidden.device)
            live = side.segments[:, -hidden.shape[1] :].to(hidden.device) >= 0
            statistics.add(side.orders.to(hidden.device), live, hidden, alpha, update, written)

        return observe

    def summary(self) -> dict[str, float]:
        """Figures by ``<graft>/site<n>/<hit|miss|orderN>/<figure>``.

        ``gate_mean``, ``gate_p10``, ``gate_p90``; ``injected_norm``: mean of update norm over hidden norm;
        ``swallowed``: share of changed channels that the model's dtype rounds back; ``positions``.
        """
        return {
            f"{name}/site{site}/{key}": value
            for (name, site), statistics in sorted(self.sites.items())
            for key, value in statistics.summary().items()
        }

    def __repr__(self) -> str:
        """The grafts and sites recorded so far."""
        sites = ", ".join(f"{name}/site{site}" for name, site in sorted(self.sites))
        return f"Telemetry({sites or 'nothing recorded'})"

    def reset(self) -> None:
        """Starts anew."""
        self.sites.clear()


@contextlib.contextmanager
def record_telemetry(recipient: nn.Module) -> Iterator[Telemetry]:
    """Records the calls of the model inside the block.

    Raises:
        GraftError: the model has no graft, or records already.
    """
    telemetry = Telemetry()
    _attach(recipient, telemetry)
    try:
        yield telemetry
    finally:
        _detach(recipient)


class TelemetryCallback(TrainerCallback):  # type: ignore[misc]
    """Adds the figures since the last log to the Trainer's logs, under ``memgraft/``."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts recording."""
        _attach(kwargs["model"], self.telemetry)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops recording."""
        _detach(kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds the figures to this log and to the history."""
        figures = {f"memgraft/{key}": value for key, value in self.telemetry.summary().items()}
        self.telemetry.reset()
        logs = kwargs.get("logs")
        if logs is not None:
            logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)


def _attach(recipient: nn.Module, telemetry: Telemetry) -> None:
    decoder, _ = find_decoder(unwrap(recipient))
    runtimes = runtimes_of(decoder).values()
    if not runtimes:
        raise GraftError("the model has no graft to record; attach one with graft()")
    if any(runtime.recorder is not None for runtime in runtimes):
        raise GraftError("the model's telemetry is recorded already: one recorder at a time")
    for runtime in runtimes:
        runtime.recorder = telemetry
        telemetry.banks[runtime.name] = {"reads": runtime.bank.fingerprint}
        if runtime.trained_on not in (None, runtime.bank.fingerprint):
            telemetry.banks[runtime.name]["trained_on"] = str(runtime.trained_on)


def _detach(recipient: nn.Module) -> None:
    decoder, _ = find_decoder(unwrap(recipient))
    for runtime in runtimes_of(decoder).values():
        runtime.recorder = None
