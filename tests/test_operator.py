"""`SymmetricLowRank` against the dense matrix that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from tests import draws, reference

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-10}
SIZES = [(0, np.float32), (1, np.float64), (4, np.float32), (9, np.float64)]


def tree(rows):
    """Rows of 7 numbers as a pytree of mixed leaf shapes, in raveled order."""
    lead = rows.shape[:-1]
    return {"a": rows[..., 0], "b": [rows[..., 1:5].reshape(*lead, 2, 2), rows[..., 5:]]}


def operator(rng, k=4, dtype=np.float64):
    """An indefinite operator of pytrees, and its dense twin."""
    factors, core = rng.normal(size=(k, 7)), draws.symmetric(rng, k)
    h = lrj.SymmetricLowRank(tree(factors.astype(dtype)), core.astype(dtype))
    return h, reference.low_rank(factors, core)


@pytest.mark.parametrize(("k", "dtype"), SIZES)
def test_every_method_equals_its_dense_twin(rng, k, dtype):
    h, dense = operator(rng, k, dtype)
    u, v = rng.normal(size=(2, 7)).astype(dtype)

    def close(a, b):
        return reference.relative_error(a, b) < TOLERANCE[dtype]

    assert close(h.to_dense(), dense)
    np.testing.assert_array_equal(h.to_dense(), h.to_dense().T)
    assert close(ravel_pytree(h @ tree(v))[0], dense @ v)
    assert close(h.bilinear(tree(u), tree(v)), u @ dense @ v)
    assert close(h.trace(), np.trace(dense))
    assert close(h.frobenius_norm(), np.linalg.norm(dense))
    assert h.T is h
    assert h.shape == (7, 7)
    assert h.dtype == dtype
    for combined, truth in (
        (h + 2 * h, 3 * dense),
        (h - h / 4, 0.75 * dense),
        (-h * np.float32(3), -3 * dense),
        (jnp.asarray(2.0) * h, 2 * dense),
        (np.float64(2) * h, 2 * dense),
    ):
        assert close(combined.to_dense(), truth)
        assert combined.core.dtype == dtype


@pytest.mark.parametrize(("k", "dtype"), SIZES)
def test_eigenpairs_are_those_of_the_dense_twin(rng, k, dtype):
    h, dense = operator(rng, k, dtype)
    s, rows = h.eigh()
    s, rank = np.asarray(s), min(k, 7)
    exact = np.linalg.eigvalsh(dense)
    exact = exact[np.argsort(-np.abs(exact))][:rank]
    np.testing.assert_allclose(
        s[:rank], exact, atol=TOLERANCE[dtype] * max(np.abs(exact), default=1)
    )
    np.testing.assert_array_equal(s[rank:], 0)
    np.testing.assert_array_equal(np.asarray(h.eigenvalues()), s)
    u = np.concatenate([np.reshape(x, (k, -1 if k else 0)) for x in jax.tree.leaves(rows)], axis=1)
    u = u if k else np.zeros((0, 7))
    np.testing.assert_array_equal(u[rank:], 0)
    np.testing.assert_allclose(u @ u.T, np.diag(np.arange(k) < rank), atol=TOLERANCE[dtype])
    assert reference.relative_error(u.T * s @ u, dense) < TOLERANCE[dtype]


@pytest.mark.parametrize(("k", "dtype"), SIZES)
def test_functions_of_the_operator_equal_their_dense_twins(rng, k, dtype):
    h, dense = operator(rng, k, dtype)
    values, vectors = np.linalg.eigh(dense)
    v, damping = rng.normal(size=7).astype(dtype), 1.5 * max(-values[0], 1)

    def close(a, b):
        return reference.relative_error(ravel_pytree(a)[0], b) < TOLERANCE[dtype]

    def mapped(f):
        return (vectors * f(values)) @ vectors.T

    maps = {
        "abs": (jnp.abs, np.abs),
        "positive part": (lambda x: jnp.maximum(x, 0), lambda x: np.maximum(x, 0)),
        "square": (jnp.square, np.square),
        "tanh": (jnp.tanh, np.tanh),
    }
    key = jax.random.key(3)

    @jax.jit
    def functions(h, v, damping):
        dense_maps = {name: h.map_spectrum(f).to_dense() for name, (f, _) in maps.items()}
        # The draw's z is what the zero operator gives, whose root is that of the damping alone.
        drawn, origin = h.sample(key, damping), (0 * h).sample(key, damping)
        numbers = h.logdet(damping), h.diagonal(), h.inertia()
        return h.solve(v, damping), *numbers, dense_maps, drawn, origin

    x, logdet, diagonal, inertia, dense_maps, drawn, origin = functions(h, tree(v), damping)
    shifted = dense + damping * np.eye(7)
    assert close(x, np.linalg.solve(shifted, v))
    assert close(logdet, np.linalg.slogdet(shifted)[1])
    assert close(diagonal, np.diag(dense))
    rank, positive = min(k, 7), np.sum(values > 1e-6 * np.max(np.abs(values)))
    assert [int(count) for count in inertia] == [positive, rank - positive, 7 - rank]
    for name, (_, twin) in maps.items():  # what should be 0 is rounding in the twin
        missed = np.linalg.norm(np.asarray(dense_maps[name], float) - mapped(twin))
        allowed = TOLERANCE[dtype] * np.linalg.norm(mapped(twin)) + 1e-14 * np.linalg.norm(dense)
        assert missed <= allowed, name
    z = np.sqrt(damping) * np.asarray(ravel_pytree(origin)[0], float)
    assert close(drawn, mapped(lambda x: (x + damping) ** -0.5) @ z)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_solve_is_backward_stable_for_factors_of_any_scale(rng, k, dtype):
    """Rows of B from 1e-3 to 1e3, dampings to 1e-6 |H|: |(H + d) x - v| stays at rounding.

    The largest damping is above |H|: at |H| itself there is no solution for a negative H.
    """
    unit = np.finfo(dtype).eps / 2
    for ratio in (0.7, 1e3, 1e6):
        factors = rng.normal(size=(k, 7)) * 10 ** rng.uniform(-3, 3, size=(k, 1))
        size = np.linalg.norm(factors, axis=1)
        core = (draws.symmetric(rng, k) / np.outer(size, size)).astype(dtype)
        factors, v = factors.astype(dtype), rng.normal(size=7).astype(dtype)
        dense = reference.low_rank(factors.astype(float), core.astype(float))
        norm = np.linalg.norm(dense, 2)
        damping = dtype(norm / ratio)
        x = np.asarray(lrj.SymmetricLowRank(factors, core).solve(v, damping), float)
        missed = np.linalg.norm(dense @ x + float(damping) * x - v)
        allowed = 50 * unit * ((norm + damping) * np.linalg.norm(x) + np.linalg.norm(v))
        assert missed < allowed


@pytest.mark.parametrize("small", [1e-3, 1e-6])
def test_small_eigenvalues_do_not_spoil_the_absolute_value(rng, small):
    """Rows that nearly vanish, as of a fit near exact low rank: eigenvalues of their square."""
    q = np.linalg.qr(rng.normal(size=(7, 3)))[0].T
    factors = np.concatenate([q, small * rng.normal(size=(3, 7))])
    core = np.block([[np.eye(3), np.eye(3)], [np.eye(3), np.zeros((3, 3))]])
    values, vectors = np.linalg.eigh(reference.low_rank(factors, core))
    found = lrj.SymmetricLowRank(factors, core).map_spectrum(jnp.abs).to_dense()
    truth = (vectors * np.abs(values)) @ vectors.T
    assert reference.relative_error(found, truth) < 1e-14


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
def test_inverse_roots_at_small_damping_keep_the_stiff_direction(rng, ratio):
    """In float32, along the top eigenvector, where the root is smallest."""
    q = np.linalg.qr(rng.normal(size=(20, 3)))[0].T.astype(np.float32)
    values, damping = np.array([ratio, ratio / 2, 1], np.float32), np.float32(1)
    h = lrj.SymmetricLowRank(q, np.diag(values))
    shifted = h.map_spectrum(lambda s: (s + damping) ** -0.5 - damping**-0.5)
    np.testing.assert_allclose(
        (shifted @ q[0] + q[0]) @ q[0], (ratio + 1) ** -0.5, rtol=1e-6 * ratio**0.5
    )
    drawn, origin = (x.sample(jax.random.key(0), damping) @ q[0] for x in (h, 0 * h))
    np.testing.assert_allclose(drawn, origin * (ratio + 1) ** -0.5, rtol=0, atol=1e-6)


def test_draws_have_the_shape_asked_for_and_unit_normal_origin(rng):
    h, _ = operator(rng, 3)
    z = (0 * h).sample(jax.random.key(1), 1.0, (40, 100))
    shapes = jax.tree.map(jnp.shape, z)
    assert shapes == {"a": (40, 100), "b": [(40, 100, 2, 2), (40, 100, 2)]}
    z = np.concatenate([np.reshape(leaf, (4000, -1)) for leaf in jax.tree.leaves(z)], axis=1)
    np.testing.assert_allclose(np.cov(z.T), np.eye(7), atol=0.12)
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=0.08)


def test_what_is_not_positive_definite_has_no_logarithm_and_no_draws(rng):
    h, dense = operator(rng, 4)
    lowest = -np.linalg.eigvalsh(dense)[0]
    for damping, good in ((0.99 * lowest, False), (1.01 * lowest, True)):
        value, slope = jax.value_and_grad(h.logdet)(damping)
        assert np.isfinite(value) == np.isfinite(slope) == good
        draw = ravel_pytree(h.sample(jax.random.key(0), damping))[0]
        assert np.isfinite(draw).all() == good
        assert np.isfinite(draw).any() == good
        x = ravel_pytree(h.solve(tree(np.ones(7)), damping))[0]
        exact = np.linalg.solve(dense + damping * np.eye(7), np.ones(7))
        np.testing.assert_allclose(x, exact, rtol=1e-9)


def test_a_traced_damping_that_is_not_positive_gives_nan(rng):
    h, _ = operator(rng, 4)

    @jax.jit
    def all_of(damping):
        solved, drawn = h.solve(tree(jnp.ones(7)), damping), h.sample(jax.random.key(0), damping)
        return ravel_pytree(solved)[0], h.logdet(damping), ravel_pytree(drawn)[0]

    for damping in (0.0, -1.0, np.nan):
        assert all(np.isnan(x).all() for x in all_of(damping))


def test_an_operator_that_is_not_finite_has_no_inertia(rng):
    h, _ = operator(rng, 3)
    assert [int(count) for count in (jnp.nan * h).inertia()] == [-1, -1, -1]


def test_a_function_known_not_to_vanish_at_zero_only_when_run_gives_nan(rng):
    h, _ = operator(rng, 3)
    for operand in (h, 0 * h):
        shifted = jax.jit(lambda c, h=operand: h.map_spectrum(lambda x: x**2 + c).trace())
        assert np.isfinite(shifted(0.0))
        assert np.isnan(shifted(1.0))


METHODS = {
    "solve": lambda h, v: h.solve(v, 0.7),
    "logdet": lambda h, v: h.logdet(40.0),
    "diagonal": lambda h, v: h.diagonal(),
    "map_spectrum": lambda h, v: h.map_spectrum(jnp.abs) @ v,
    "sample": lambda h, v: h.sample(jax.random.key(0), 40.0, (2,)),
}


@pytest.mark.parametrize("name", METHODS)  # one to a program: two can deadlock JAX 0.10
def test_methods_under_vmap_are_those_of_each(rng, name):
    factors = rng.normal(size=(3, 4, 7))
    core = np.array([draws.symmetric(rng, 4) for _ in range(3)])
    v = rng.normal(size=(3, 7))

    def method(factors, core, v):
        return METHODS[name](lrj.SymmetricLowRank(factors, core), v)

    batch, each = jax.jit(jax.vmap(method))(factors, core, v), jax.jit(method)
    for i in range(3):
        one = each(factors[i], core[i], v[i])
        np.testing.assert_allclose(batch[i], one, rtol=1e-10, atol=1e-12)


def test_truncation_is_the_best_approximation_of_its_rank(rng):
    h, dense = operator(rng, 5)
    for rank in (0, 1, 3, 5, 8):
        short = h.truncate(rank)
        assert short.core.shape == (rank, rank)
        error = reference.relative_error(short.to_dense(), dense)
        np.testing.assert_allclose(error, reference.eckart_young_error(dense, rank), atol=1e-10)
    surplus, rows = short.eigh()
    np.testing.assert_array_equal(surplus[5:], 0)
    assert all((leaf[5:] == 0).all() for leaf in jax.tree.leaves(rows))


def test_what_cancels_is_exactly_zero(rng):
    h, _ = operator(rng, 4)
    np.testing.assert_array_equal((h - h).eigenvalues(), 0)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-18, 1e18, 1e30])
def test_float32_operators_of_any_magnitude(rng, magnitude):
    factors, core = rng.normal(size=(4, 7)), draws.symmetric(rng, 4)
    dense = reference.low_rank(factors, core)
    size = np.sqrt(magnitude)
    for rows, small in ((factors, core * magnitude), (factors * size, core)):
        h = lrj.SymmetricLowRank(rows.astype(np.float32), small.astype(np.float32))
        np.testing.assert_allclose(h.trace() / magnitude, np.trace(dense), rtol=1e-5)
        np.testing.assert_allclose(h.frobenius_norm() / magnitude, np.linalg.norm(dense), rtol=1e-5)
        found = h.eigenvalues().astype(float) / magnitude
        exact = np.linalg.eigvalsh(dense)
        exact = exact[np.argsort(-np.abs(exact))][:4]
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


def test_eigenpairs_under_vmap_are_those_of_each(rng):
    factors = rng.normal(size=(3, 4, 7))
    core = np.array([draws.symmetric(rng, 4) for _ in range(3)])
    batch = jax.vmap(lrj.SymmetricLowRank)(factors, core)
    values = jax.vmap(lambda h: h.eigenvalues())(batch)
    assert batch.shape == (3, 7, 7)
    for i in range(3):
        one = lrj.SymmetricLowRank(factors[i], core[i])
        np.testing.assert_allclose(values[i], one.eigenvalues(), atol=1e-12)


def test_repr_tells_shape_factors_and_dtype(rng):
    h, _ = operator(rng)
    assert repr(h) == "SymmetricLowRank(shape=(7, 7), factors=4, dtype=float64)"
    axes = jax.tree.unflatten(jax.tree.structure(h), [0] * 4)
    assert "core=0" in repr(axes)
    assert "float64" in repr(jax.tree.map(lambda leaf: leaf.dtype, h))


def test_rigid_motions_count_as_zero_and_a_tolerance_decides(rng):
    """Eigenvalues as of a molecule's minimum: six that are rounding of its gradients."""
    values = np.array([251.0, 80.0, 13.0, 2.0, -3.5e-7, 2e-7, -1e-7, 3e-8, -4e-9, 1e-9])
    q = np.linalg.qr(rng.normal(size=(12, 10)))[0].T
    h = lrj.SymmetricLowRank(q, np.diag(values))

    def counts(*tol):
        return [int(count) for count in h.inertia(*tol)]

    assert counts() == [4, 0, 8]
    assert counts(10.0) == [3, 0, 9]
    assert counts(0.0) == [7, 3, 2]
    assert counts(2.5e-7) == [4, 1, 7]
    assert [int(count) for count in (0 * h).inertia()] == [0, 0, 12]
    traced = jax.jit(lambda tol: h.inertia(tol))
    assert [int(count) for count in traced(10.0)] == [3, 0, 9]
    assert [int(count) for count in traced(-1.0)] == [-1, -1, -1]
    with pytest.raises(ValueError, match="tol must be"):
        h.inertia(-1.0)


def test_the_positive_part_is_the_nearest_semidefinite_operator(rng):
    h, dense = operator(rng, 5)
    values, vectors = np.linalg.eigh(dense)
    part = h.positive_part()
    truth = (vectors * np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(part.to_dense(), truth, atol=1e-12)
    assert part.core.shape == h.core.shape
    assert np.isnan(h.logdet(1e-3))
    np.testing.assert_allclose(part.logdet(1e-3), np.sum(np.log(np.maximum(values, 0) + 1e-3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_variables_in_units_far_apart_keep_their_curvature_with_a_vector_of_dampings(rng, dtype):
    """Rows `[t, 1]` with t to 1e4: the curvature of the second is rounding beside the first's.

    Of a hundred sets of rows, whichever of them the basis begins with.
    """
    t = rng.uniform(0, 1e4, size=(100, 20)).astype(dtype)
    factors, d = np.stack([t, np.ones_like(t)], axis=-1), np.full(2, 1e-2, dtype)
    key, eps = jax.random.key(0), np.finfo(dtype).eps

    @jax.jit
    @jax.vmap
    def functions(factors):
        h = lrj.SymmetricLowRank(factors, jnp.eye(20, dtype=dtype))
        drawn, origin = h.sample(key, d), (0 * h).sample(key, d)
        return h.solve(np.ones(2, dtype), d), h.logdet(d), h.inverse(d).to_dense(), drawn, origin

    exact = factors.astype(np.longdouble)
    (a, b), (_, c) = np.moveaxis(np.swapaxes(exact, 1, 2) @ exact + np.diag(d), 0, -1)
    det = a * c - b**2
    inverses = np.moveaxis(np.stack([[c, -b], [-b, a]]) / det, -1, 0)
    found = zip(*(np.asarray(x, np.longdouble) for x in functions(factors)), strict=True)
    for i, (x, logdet, inverse, drawn, origin) in enumerate(found):
        assert reference.relative_error(x, inverses[i].sum(axis=1)) < 20 * eps
        assert abs(logdet / np.log(det[i]) - 1) < 20 * eps
        assert np.abs(inverse - inverses[i]).max() < 20 * eps / np.min(d)
        # A draw is R z with R R^T the inverse, and that of 0 is z / sqrt(d).
        length = np.sqrt(
            a[i] * drawn[0] ** 2 + 2 * b[i] * drawn[0] * drawn[1] + c[i] * drawn[1] ** 2
        )
        close = 20 * eps * np.sqrt(a[i] / np.min(d))
        assert abs(length - np.linalg.norm(np.sqrt(d) * origin)) < close
