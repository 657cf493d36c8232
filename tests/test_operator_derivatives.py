"""Derivatives of the operator's methods against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws
from tests.derivatives import check_derivatives

DIM = 7
V = np.linspace(-1, 1, DIM)


def symmetric(factors, core):
    return lrj.SymmetricLowRank(factors, (core + core.T) / 2)


def test_derivatives_of_methods(rng):
    def smooth(factors, core):
        h = symmetric(factors, core)
        return h @ V, h.trace(), h.frobenius_norm(), h.bilinear(V, V**2)

    def spectral(factors, core):
        h = symmetric(factors, core)
        return h.eigenvalues(), h.truncate(2) @ V

    check_derivatives(smooth, generic(rng), order=2)
    check_derivatives(spectral, generic(rng))


def test_truncation_differentiates_where_eigenvalues_outside_repeat(rng):
    """Two eigenvalues of four vanish: the span of the others is smooth."""
    factors, v = rng.normal(size=(4, 7)), rng.normal(size=7)

    def truncated(w):
        core = jnp.diag(jnp.concatenate([w, jnp.zeros(2)]))
        return lrj.SymmetricLowRank(factors, core).truncate(2) @ v

    check_derivatives(truncated, (np.array([2.0, -1.0]),))


def generic(rng):
    return rng.normal(size=(6, DIM)), draws.symmetric(rng, 6)


def fitted_identity(rng):
    """What a fit gives at the identity: rows that vanish, coupled to rows that do not."""
    q = np.linalg.qr(rng.normal(size=(DIM, 3)))[0].T
    one, zero = np.eye(3), np.zeros((3, 3))
    return np.concatenate([q, 0 * q]), np.block([[one, one], [one, zero]])


def fitted_low_rank(rng):
    factors, core = fitted_identity(rng)
    core[:3, :3] = np.diag([2.0, -1.0, 0.0])
    return factors, core


def more_than_dim(rng):
    return rng.normal(size=(DIM + 2, DIM)), draws.symmetric(rng, DIM + 2)


def repeated_eigenvalues(rng):
    return np.linalg.qr(rng.normal(size=(DIM, 6)))[0].T, np.diag([2.0, 2.0, -2.0, 1.0, 1.0, -3.0])


POINTS = [generic, fitted_identity, fitted_low_rank, more_than_dim, repeated_eigenvalues]


def functions(factors, core, v, damping, c):
    h = symmetric(factors, core)
    wave = h.map_spectrum(lambda x: jnp.sin(c * x))
    drawn = h.sample(jax.random.key(0), damping)
    return h.solve(v, damping), h.logdet(damping), h.diagonal(), wave @ v, drawn


@pytest.mark.parametrize("draw", POINTS)
def test_derivatives_of_functions_of_the_operator(rng, draw):
    factors, core = draw(rng)

    args = factors, core, V, np.float64(60.0), np.float64(0.7)
    check_derivatives(functions, args)


def absolute(factors, core):
    return symmetric(factors, core).map_spectrum(jnp.abs) @ V


@pytest.mark.parametrize("draw", [generic, fitted_identity, more_than_dim, repeated_eigenvalues])
def test_derivatives_of_the_absolute_value_at_constant_rank_or_away_from_zero(rng, draw):
    factors, core = draw(rng)

    # Small steps: one that adds to the rank adds eigenvalues of its square.
    check_derivatives(absolute, (factors, core), eps=1e-6)


def solve_and_logdet(factors, core, damping):
    h = symmetric(factors, core)
    return h.solve(V, damping), h.logdet(damping)


@pytest.mark.parametrize("draw", [generic, fitted_low_rank])
def test_second_derivatives_of_solve_and_logdet(rng, draw):
    check_derivatives(solve_and_logdet, (*draw(rng), np.float64(60.0)), order=2)


def test_second_derivatives_of_functions_of_the_eigenvalues_where_they_are_distinct(rng):
    factors, core = generic(rng)

    def wave(factors, core, c):
        return symmetric(factors, core).map_spectrum(lambda x: jnp.sin(c * x)) @ V

    args = factors, core, np.float64(0.7)
    check_derivatives(wave, args, order=2)


AT_ZERO = {
    "sin": lambda h: h.map_spectrum(jnp.sin).to_dense(),
    "expm1": lambda h: h.map_spectrum(jnp.expm1).to_dense(),
    "sample": lambda h: h.sample(jax.random.key(0), 1.5),
    "vector sample": lambda h: h.sample(jax.random.key(0), 1.5 + V**2),
    "logdet": lambda h: h.logdet(1.5),
    "inverse": lambda h: h.inverse(1.5).to_dense(),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", AT_ZERO)
def test_derivatives_where_many_eigenvalues_are_zero_to_rounding(rng, name, turned):
    u, d = rng.normal(size=DIM), rng.normal(size=DIM)
    q = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] if turned else np.eye(DIM)

    def function(t):
        core = q @ (jnp.outer(u, u) + t * jnp.diag(d)) @ q.T
        return AT_ZERO[name](lrj.SymmetricLowRank(q, core))

    step = 1e-6
    tangent = jax.jvp(function, (0.0,), (1.0,))[1]
    ahead, behind = function(step), function(-step)
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


def test_a_result_of_map_spectrum_has_the_factors_of_its_operator(rng):
    """Also where rows of B depend on each other, whose derivatives it carries all the same."""
    for draw in POINTS:
        factors, core = draw(rng)
        h = symmetric(factors, core)
        assert h.map_spectrum(jnp.sin).core.shape == core.shape
        assert h.positive_part().core.shape == core.shape


def test_a_function_that_is_safe_in_value_is_silent_under_debug_nans(rng):
    """The derivative of sqrt(relu(s)) is NaN for s < 0 and infinite at 0, and nobody asked."""
    factors, core = fitted_low_rank(rng)
    h = lrj.SymmetricLowRank(factors, core)
    values, vectors = np.linalg.eigh(np.asarray(h.to_dense()))
    truth = (vectors * np.sqrt(np.maximum(values, 0) * (values > 1e-12))) @ vectors.T
    with jax.debug_nans(True):
        for f in (lambda s: jnp.sqrt(jax.nn.relu(s)), lambda s: jnp.sqrt(jnp.maximum(s, 0))):
            found = h.map_spectrum(f).to_dense()
            np.testing.assert_allclose(found, truth, atol=1e-12)
            np.testing.assert_allclose(
                jax.jit(lambda h, f=f: h.map_spectrum(f))(h).to_dense(), truth, atol=1e-12
            )
        found = h.map_spectrum(lambda s: jnp.where(s == 0, 0, s * jnp.log(jnp.abs(s)))).to_dense()
        h.sample(jax.random.key(0), 3.0)
        h.positive_part()
    size = np.where(np.abs(values) > 1e-12, np.abs(values), 1)
    np.testing.assert_allclose(found, (vectors * values * np.log(size)) @ vectors.T, atol=1e-12)
