import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor as ReferenceRegressor
from sklearn.gaussian_process import kernels as reference
from skopt.acquisition import gaussian_ei
from skopt.learning import GaussianProcessRegressor

from saccade.callbacks.trait.surrogate import (
    expected_improvement,
    fit_surrogate,
    posterior,
    released_improvement,
)

RATIOS = np.array([-3, -2, -1, -0.5, 0, 0.5, 0.61, 1, 2])
UNITS = np.eye(6, dtype=int)
# warm-up rows and the same states tried again from the root, measured 0.002 apart
TWICE = np.concatenate([UNITS, UNITS])
SCORES = 0.4 + 0.01 * np.arange(6)
DISAGREEING = np.concatenate([SCORES, SCORES + 0.002])


def test_expected_improvement_has_the_known_values() -> None:
    known = [0.0004, 0.0085, 0.0833, 0.1978, 0.3989, 0.6978, 0.7759, 1.0833, 2.0085]
    np.testing.assert_allclose(expected_improvement(RATIOS, np.ones(9), 0.0), known, atol=1e-4)


def test_the_released_formula_has_the_known_values() -> None:
    known = [-2.9915, -1.9005, -0.5994, 0.0063, 0.3989, 0.5063, 0.4965, 0.4006, 0.0995]
    np.testing.assert_allclose(released_improvement(RATIOS, np.ones(9), 0.0), known, atol=1e-4)


def test_the_released_formula_prefers_a_slight_improvement() -> None:
    small, large = released_improvement([0.5, 2.0], [1.0, 1.0], 0.0)
    assert small > large


def test_best_and_xi_shift_the_scale() -> None:
    np.testing.assert_allclose(
        expected_improvement(RATIOS + 0.41, np.ones(9), 0.4, 0.01), expected_improvement(RATIOS, np.ones(9), 0.0)
    )


REAL = st.floats(-5, 5)
DEVIATION = st.floats(0, 5)


@given(REAL, DEVIATION, st.floats(0.01, 3), REAL)
def test_expected_improvement_is_at_least_zero_and_rises_with_mean_and_deviation(
    mean: float, std: float, more: float, best: float
) -> None:
    here, higher = expected_improvement([mean, mean + more], [std, std], best, 0.001)
    wider = expected_improvement([mean], [std + more], best, 0.001)[0]
    assert here >= 0
    assert higher >= here
    assert wider >= here - 1e-12


def test_a_certain_prediction_gives_the_limit_of_both_formulas() -> None:
    for mean in (-0.3, 0.0, 0.7):
        for formula in (expected_improvement, released_improvement):
            certain, nearly = formula([mean, mean], [0.0, 1e-9], 0.0)
            assert certain == pytest.approx(nearly, abs=1e-8)


def test_it_is_the_acquisition_of_scikit_optimize_with_the_sign_turned() -> None:
    rng = np.random.default_rng(0)
    states, scores = rng.integers(0, 3, (20, 4)), rng.normal(0.4, 0.05, 20)
    points = rng.integers(0, 4, (15, 4))
    model = fit_surrogate(states.tolist(), scores.tolist())
    mean, std = posterior(model, points.tolist())

    class Minimised:
        def predict(self, X: np.ndarray, return_std: bool) -> tuple[np.ndarray, np.ndarray]:
            found, spread = model.predict(X, return_std=True)
            return -found, spread

    theirs = gaussian_ei(points.astype(float), Minimised(), y_opt=-scores.max(), xi=0.001)
    np.testing.assert_allclose(expected_improvement(mean, std, scores.max(), 0.001), theirs, atol=1e-12)


def duals(surrogate: str) -> float:
    model = fit_surrogate(TWICE.tolist(), DISAGREEING.tolist(), surrogate)  # type: ignore[arg-type]
    return float(np.abs(model.alpha_).max())


def test_two_measurements_of_a_state_ruin_the_released_process_only() -> None:
    assert duals("corrected") < 100
    assert duals("released") > 1e5


def test_the_process_learns_which_source_helps() -> None:
    states = [[a, b, c] for a in range(3) for b in range(3) for c in range(2)]
    scores = [0.4 + 0.02 * a - 0.02 * b for a, b, _ in states]
    mean, std = posterior(fit_surrogate(states, scores), [[3, 0, 0], [2, 1, 0], [0, 3, 0]])
    assert mean[0] > mean[1] > mean[2]
    assert (std >= 0).all()
    near, far = posterior(fit_surrogate(states, scores), [[1, 1, 1], [9, 9, 9]])[1]
    assert near < far


def test_the_noise_of_measuring_is_no_doubt_about_the_score() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 60)
    states = [[1, 0], [0, 1]] * 30
    scores = [0.4 + 0.2 * state[0] + error for state, error in zip(states, noise, strict=True)]
    mean, std = posterior(fit_surrogate(states, scores.copy()), [[1, 0], [0, 1]])
    assert (std < 0.02).all()
    assert mean == pytest.approx([0.6, 0.4], abs=0.03)


def test_equal_arguments_give_an_equal_process() -> None:
    first, second = (fit_surrogate(TWICE.tolist(), DISAGREEING.tolist(), "corrected", 3) for _ in range(2))
    for one, other in zip(posterior(first, TWICE.tolist()), posterior(second, TWICE.tolist()), strict=True):
        assert (one == other).all()


def test_the_settings_are_those_of_the_method() -> None:
    corrected = fit_surrogate(TWICE.tolist(), DISAGREEING.tolist())
    bounds = {item.name: np.exp(corrected.kernel.bounds[i]) for i, item in enumerate(corrected.kernel.hyperparameters)}
    np.testing.assert_allclose(bounds["k1__k2__length_scale"], (0.3, 30))
    np.testing.assert_allclose(bounds["k2__noise_level"], (1e-5, 1))
    assert corrected.normalize_y
    released = fit_surrogate(UNITS.tolist(), SCORES.tolist(), "released")
    assert [item.name for item in released.kernel.hyperparameters] == ["length_scale"]
    assert (released.alpha, released.normalize_y, released.n_restarts_optimizer) == (1e-10, False, 10)


def test_a_decomposition_that_fails_gets_more_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, whole, limit = [], GaussianProcessRegressor.fit, 3

    def fit(self: GaussianProcessRegressor, X: np.ndarray, y: np.ndarray) -> GaussianProcessRegressor:
        tried.append(self.alpha)
        if len(tried) < limit:
            raise np.linalg.LinAlgError
        return whole(self, X, y)

    monkeypatch.setattr(GaussianProcessRegressor, "fit", fit)
    fit_surrogate(UNITS.tolist(), SCORES.tolist(), "released")
    assert tried == pytest.approx([1e-10, 1e-8, 1e-6])
    tried, limit = [], 99
    with pytest.raises(np.linalg.LinAlgError):
        fit_surrogate(UNITS.tolist(), SCORES.tolist(), "released")
    assert max(tried) <= 1.01e-4


@pytest.mark.parametrize(("count", "sources"), [(6, 4), (20, 4), (40, 8), (90, 28)])
def test_the_process_is_that_of_scikit_learn(count: int, sources: int) -> None:
    rng = np.random.default_rng(count)
    states = rng.integers(0, 3, (count, sources))
    scores = 0.4 + 0.01 * states @ rng.normal(size=sources) + rng.normal(0, 0.004, count)
    points = rng.integers(0, 4, (12, sources))
    kernel = (
        reference.ConstantKernel(1.0, (1e-2, 1e2)) * reference.RBF(3.0, (0.3, 30.0))
        + reference.WhiteKernel(0.1, (1e-5, 1.0))
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ReferenceRegressor(kernel, normalize_y=True, n_restarts_optimizer=1, random_state=0)
        mean, std = theirs.fit(states, scores).predict(points, return_std=True)
    ours = fit_surrogate(states.tolist(), scores.tolist())
    assert ours.log_marginal_likelihood_value_ == pytest.approx(theirs.log_marginal_likelihood_value_, abs=1e-3)
    ours_mean, ours_std = posterior(ours, points.tolist())
    np.testing.assert_allclose(ours_mean, mean, atol=1e-4 * scores.std())
    noise = theirs.kernel_.k2.noise_level * scores.var()
    np.testing.assert_allclose(ours_std**2, np.maximum(std**2 - noise, 0), atol=1e-4 * scores.var())


def test_warnings_of_the_fit_are_not_shown(recwarn: pytest.WarningsRecorder) -> None:
    posterior(fit_surrogate(TWICE.tolist(), DISAGREEING.tolist(), "released"), UNITS.tolist())
    posterior(fit_surrogate([[0, 0], [0, 0]], [0.4, 0.4]), [[1, 0]])
    assert not recwarn.list
