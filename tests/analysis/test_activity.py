"""Activity of channels against numpy on all samples at once."""

from __future__ import annotations

import numpy as np
import pytest
from gallery import Builder

from onnxslim.analysis.activity import observe_activity
from onnxslim.errors import PassError
from onnxslim.runtime import Session
from onnxslim.samples import Samples


def test_energies_and_zeros_are_those_of_all_values() -> None:
    b = Builder(size=6, seed=1)
    inner = b.relu(b.conv("x", 5))
    out = b.head(inner)
    model = b.build(out)
    x = np.random.default_rng(0).standard_normal((7, 1, 3, 6, 6)).astype(np.float32)
    samples = Samples.from_feeds([{"x": value} for value in x])
    found = observe_activity(model, {inner: 1, out: -1, "x": 1}, samples, threads=1)
    session = Session(model.placed([inner]).data)
    values = np.concatenate([session.run({"x": value}, [inner])[inner] for value in x]).astype(np.float64)
    np.testing.assert_allclose(found[inner].energy, (values**2).mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found[inner].alive, (values > 0).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(found["x"].energy, (x.astype(np.float64) ** 2).mean(axis=(0, 1, 3, 4)), rtol=1e-6)
    assert found[out].alive.tolist() == [1.0] * 5
    assert 0 < found[inner].alive.min() < found[inner].alive.max() < 1


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_named(poison: float) -> None:
    b = Builder(size=6, seed=1)
    model = b.build(b.head(b.conv("x", 5)))
    x = np.full((1, 3, 6, 6), poison, np.float32)
    with pytest.raises(PassError, match="'x' holds NaN or Inf"):
        observe_activity(model, {"x": 1}, Samples.from_feeds([{"x": x}]))
