"""Metrics of saliency maps are those of pysaliency 0.2.22.

Its values for three frames are written down here; where it is installed, they are computed anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kt.tasks import maps

Map = NDArray[np.float64]

KNOWN = {
    "cc": [0.9009516172138405, 0.9107627400876618, 0.9018854566332648],
    "sim": [0.5402795440056676, 0.6614734917134015, 0.4395105141254929],
    "nss": [-0.08776936525716857, 0.36620053434448335, 0.31203536405727395],
    "kld": [0.7220350357004554, 0.37661730129926796, 0.8379044439336817],
    "auc_judd": [0.4347826086956521, 0.627510420613869, 0.49125109361329833],
    "s_auc": [0.45, 0.5333333333333333, 0.4565217391304348],
}


class Frames(NamedTuple):
    """Frames of three videos, of 24 × 32 pixels."""

    maps: Map
    truth: Map
    at: list[NDArray[np.int64]]
    """y and x of the fixations of each frame, [F, 2]."""

    def counts(self) -> torch.Tensor:
        """Fixations at each pixel, [3, H, W]."""
        found = np.zeros_like(self.maps)
        for frame, places in zip(found, self.at, strict=True):
            np.add.at(frame, tuple(places.T), 1)
        return torch.from_numpy(found)


def frames() -> Frames:
    """The first map has ties, the second zeros where its truth is none, the third a fixation at 0."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:24, :32]
    truth = np.stack([np.exp(-((y - a) ** 2 + (x - b) ** 2) / 20) for a, b in ((8, 10), (15, 25), (4, 4))])
    noisy = truth + 0.3 * rng.random(truth.shape)
    noisy[0] = noisy[0].round(1)
    noisy[1][:, :12] = 0
    noisy -= noisy.min((1, 2), keepdims=True)
    places = [np.stack([rng.integers(0, 24, n), rng.integers(0, 32, n)], 1) for n in (9, 14, 6)]
    noisy[2][tuple(places[2][0])] = 0
    return Frames(noisy, truth, places)


def ours() -> dict[str, list[float]]:
    given = frames()
    own, truth, counts = torch.from_numpy(given.maps), torch.from_numpy(given.truth), given.counts()
    return {
        "cc": maps.cc(own, truth).tolist(),
        "sim": maps.sim(own, truth - truth.amin((1, 2), keepdim=True)).tolist(),
        "nss": maps.nss(own, counts).tolist(),
        "kld": maps.kld(own, truth).tolist(),
        "auc_judd": maps.auc_judd(own, counts).tolist(),
        "s_auc": maps.s_auc(own, counts, counts.sum(0) - counts).tolist(),
    }


def theirs(pysaliency: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    from pysaliency import metrics, roc

    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # NumPy has renamed it
    given = frames()
    images = [np.full((24, 32, 3), i, np.uint8) for i in range(3)]
    lengths = [len(places) for places in given.at]
    y, x = np.concatenate(given.at).T
    fixations = pysaliency.Fixations.create_without_history(x, y, np.repeat(np.arange(3), lengths))

    class Model(pysaliency.SaliencyMapModel):  # type: ignore[misc]
        def _saliency_map(self, stimulus: NDArray[np.uint8]) -> Map:
            found: Map = given.maps[stimulus[0, 0, 0]]
            return found

    shuffled = Model().sAUCs(pysaliency.Stimuli(images), fixations)
    free = [own[count.numpy() == 0] for own, count in zip(given.maps, given.counts(), strict=True)]
    at = [own[tuple(places.T)] for own, places in zip(given.maps, given.at, strict=True)]
    from_zero = [truth - truth.min() for truth in given.truth]
    return {
        "cc": [metrics.CC(*pair) for pair in zip(given.maps, given.truth, strict=True)],
        "sim": [metrics.SIM(*pair) for pair in zip(given.maps, from_zero, strict=True)],
        "nss": [metrics.NSS(own, *places.T[::-1]).mean() for own, places in zip(given.maps, given.at, strict=True)],
        "kld": [metrics.MIT_KLDiv(*pair) for pair in zip(given.maps, given.truth, strict=True)],
        "auc_judd": [roc.general_roc(*pair, judd=1)[0] for pair in zip(at, free, strict=True)],
        "s_auc": [float(part.mean()) for part in np.split(shuffled, np.cumsum(lengths)[:-1])],
    }


@pytest.mark.parametrize("name", ["cc", "sim", "nss", "kld", "auc_judd", "s_auc"])
def test_metrics_are_those_of_pysaliency(name):
    assert ours()[name] == pytest.approx(KNOWN[name], rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_the_values_written_down_are_those_of_the_installed_version(monkeypatch):
    pysaliency = pytest.importorskip("pysaliency")
    found = theirs(pysaliency, monkeypatch)
    assert {name: pytest.approx(values, rel=1e-9) for name, values in found.items()} == KNOWN
