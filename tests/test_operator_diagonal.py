"""`DiagonalPlusLowRank` against the dense matrix that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from tests import draws, reference
from tests.derivatives import check_derivatives
from tests.test_operator import TOLERANCE, operator, tree

DIM = 7
SIZES = [(0, np.float32), (4, np.float32), (4, np.float64), (9, np.float64)]


def diagonal(rng, ratio, dtype):
    """A number for None, else one a coordinate whose largest is `ratio` times the smallest."""
    if ratio is None:
        return dtype(0.7), np.full(DIM, dtype(0.7), float)
    d = (np.exp(rng.permutation(np.linspace(0, np.log(ratio), DIM))) / ratio**0.5).astype(dtype)
    return tree(d), d.astype(float)


def matrix(rng, k, ratio, dtype, *, definite=False):
    """A, and its dense twin."""
    h, low = operator(rng, k, np.float64)
    if definite:
        h = h.map_spectrum(jnp.abs)
        low = np.asarray(h.to_dense())
    h = jax.tree.map(lambda x: jnp.asarray(x, dtype), h)
    d, row = diagonal(rng, ratio, dtype)
    return h.plus_diagonal(d), low + np.diag(row)


def flat(v):
    return np.asarray(ravel_pytree(v)[0], float)


@pytest.mark.parametrize(("k", "dtype"), SIZES)
@pytest.mark.parametrize("ratio", [None, 1e3])
def test_every_method_equals_its_dense_twin(rng, k, dtype, ratio):
    a, dense = matrix(rng, k, ratio, dtype)
    u, v = rng.normal(size=(2, DIM)).astype(dtype)

    def close(x, truth):
        return reference.relative_error(flat(x), np.ravel(truth)) < TOLERANCE[dtype]

    assert close(a.to_dense(), dense)
    np.testing.assert_array_equal(a.to_dense(), a.to_dense().T)
    assert close(a @ tree(v), dense @ v)
    assert close(tree(v) @ a, dense @ v)
    assert close(a.matvec(tree(v)), dense @ v)
    assert close(a.bilinear(tree(u), tree(v)), u @ dense @ v)
    assert close(a.trace(), np.trace(dense))
    assert close(a.diagonal(), np.diag(dense))
    assert a.T is a
    assert (a.shape, a.dtype) == ((DIM, DIM), dtype)
    low, number = a.low_rank, lrj.DiagonalPlusLowRank(dtype(2), a.low_rank)
    of_h, row = np.asarray(low.to_dense(), float), np.diag(flat(a.diagonal() if k == 0 else a.diag))
    row = np.diag(np.diag(dense) - np.diag(of_h)) if k else dense
    for combined, truth in (
        (a + 2 * a, 3 * dense),
        (a - low / 4, dense - of_h / 4),
        (low - a, of_h - dense),
        (low + a, of_h + dense),
        (sum([a, low, a]), 2 * dense + of_h),
        (a + number, dense + 2 * np.eye(DIM) + of_h),
        (number - a, 2 * np.eye(DIM) + of_h - dense),
        (-a * np.float32(3), -3 * dense),
        (np.float64(2) * a / 4, dense / 2),
        (a.plus_diagonal(tree(v)), dense + np.diag(v)),
        (a.plus_diagonal(3), dense + 3 * np.eye(DIM)),
        (a.plus_diagonal(0), dense),
        (a.truncate(0), row),
    ):
        assert close(combined.to_dense(), truth)
        assert combined.low_rank.core.dtype == dtype


@pytest.mark.parametrize(("k", "dtype"), SIZES)
@pytest.mark.parametrize("ratio", [None, 1e1, 1e6])
def test_functions_equal_their_dense_twins(rng, k, dtype, ratio):
    a, dense = matrix(rng, k, ratio, dtype, definite=True)
    v = rng.normal(size=DIM).astype(dtype)
    key = jax.random.key(3)

    @jax.jit
    def functions(a, v):
        zero = a * 0 + lrj.DiagonalPlusLowRank(jnp.ones((), dtype), a.low_rank * 0)
        return a.solve(v), a.logdet(), a.inverse(), a.sample(key), zero.sample(key)

    x, logdet, inverse, drawn, z = functions(a, tree(v))
    exact, eps = np.linalg.inv(dense), np.finfo(dtype).eps
    condition = np.linalg.norm(dense, 2) * np.linalg.norm(exact, 2)
    close, logs = TOLERANCE[dtype], np.log(np.linalg.eigvalsh(dense))
    assert abs(float(logdet) - np.sum(logs)) < close * max(np.sum(np.abs(logs)), 1)
    error = np.linalg.norm(np.asarray(inverse.to_dense(), float) - exact, 2)
    # Merely to round D^-1, which may be far above the inverse, costs an eighth of the second term.
    assert error < close * np.linalg.norm(exact, 2) + 4 * eps * np.max(1 / flat(a.diag))
    missed = np.linalg.norm(dense @ flat(x) - v)
    assert missed < 20 * eps * np.linalg.norm(dense, 2) * np.linalg.norm(flat(x))
    # A draw is R z with R R^T the inverse: its length in A is that of z.
    length = flat(drawn) @ dense @ flat(drawn)
    np.testing.assert_allclose(length, flat(z) @ flat(z), rtol=close + 2 * eps * condition)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [1e1, 1e3, 1e6])
def test_solve_is_backward_stable_for_diagonals_of_any_spread(rng, dtype, spread):
    """H indefinite and up to 1e6 times the least of d, which spans as much."""
    for k, size in ((4, 1e1), (4, 1e3), (4, 1e6), (9, 1e1), (9, 1e3)):
        a, _ = matrix(rng, k, spread, dtype)
        a = a.plus_diagonal(0.0) + (size / 10 - 1) * a.low_rank
        dense, v = np.asarray(a.to_dense(), float), rng.normal(size=DIM).astype(dtype)
        dense = np.asarray(jax.tree.map(lambda x: x.astype(float), a).to_dense())
        x = flat(a.solve(tree(v)))
        allowed = np.linalg.norm(dense, 2) * np.linalg.norm(x) + np.linalg.norm(v)
        assert np.linalg.norm(dense @ x - v) < 50 * np.finfo(dtype).eps / 2 * allowed


def test_the_inverse_of_an_inverse_is_the_matrix(rng):
    for ratio in (None, 1e2):
        a, dense = matrix(rng, 4, ratio, np.float64, definite=True)
        inverse = a.inverse()
        assert inverse.low_rank.core.shape == (4, 4)
        back = inverse.inverse()
        np.testing.assert_allclose(back.to_dense(), dense, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(a.inverse(2.0).to_dense(), np.linalg.inv(dense + 2 * np.eye(7)))
        h = a.low_rank
        np.testing.assert_allclose(h.inverse(a.diag).to_dense(), inverse.to_dense())
        np.testing.assert_allclose(h.logdet(a.diag), a.logdet())
        chained = inverse @ (a @ tree(np.arange(7.0)))
        np.testing.assert_allclose(flat(chained), np.arange(7.0), atol=1e-11)


@pytest.mark.parametrize("ratio", [None, 1e3])
def test_a_vector_of_double_precision_is_solved_for_in_it(rng, ratio):
    a, _ = matrix(rng, 4, ratio, np.float32, definite=True)
    dense = jax.tree.map(lambda x: np.asarray(x, np.float64), a).to_dense()
    v = rng.normal(size=DIM)
    np.testing.assert_allclose(flat(a.solve(tree(v))), np.linalg.solve(dense, v), rtol=1e-10)


def test_what_is_not_positive_is_no_number(rng):
    a, dense = matrix(rng, 4, 1e1, np.float64)
    lowest = np.linalg.eigvalsh(dense)[0]
    assert lowest < 0
    assert np.isnan(a.logdet())
    assert np.isnan(flat(a.sample(jax.random.key(0)))).all()
    above = a.plus_diagonal(-1.01 * lowest)
    assert np.isfinite(above.logdet())
    assert np.isfinite(flat(above.sample(jax.random.key(0)))).all()
    x = flat(a.solve(tree(np.ones(7))))  # indefinite, and regular
    np.testing.assert_allclose(dense @ x, np.ones(7), atol=1e-10)
    negative = a.plus_diagonal(-1e3)
    for value in (negative.logdet(), negative.solve(tree(np.ones(7))), negative.inverse().diag):
        assert np.isnan(flat(value)).all()


def fitted(rng):
    """A row that is zero, coupled to one that is not, and one that is twice another."""
    factors = rng.normal(size=(4, DIM))
    factors[1], factors[3] = 0, 2 * factors[0]
    return factors, draws.symmetric(rng, 4)


POINTS = {
    "generic": lambda rng: (rng.normal(size=(3, DIM)), draws.symmetric(rng, 3)),
    "dependent": fitted,
    "more than D": lambda rng: (rng.normal(size=(DIM + 2, DIM)), draws.symmetric(rng, DIM + 2)),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("vector", [False, True])
def test_derivatives_of_two_orders_are_those_of_the_matrix(rng, point, vector):
    factors, core = POINTS[point](rng)
    d = 30 + rng.uniform(size=DIM) if vector else np.float64(30.0)

    def functions(factors, core, d):
        h = lrj.SymmetricLowRank(factors, (core + core.T) / 2)
        a = h.plus_diagonal(d)
        return a.solve(jnp.arange(7.0)), a.logdet(), a.inverse() @ jnp.arange(7.0)

    core = core * 25 / np.linalg.norm(factors.T @ core @ factors, 2)
    check_derivatives(functions, (factors, core, d), order=2)

    def drawn(factors, core, d):
        h = lrj.SymmetricLowRank(factors, (core + core.T) / 2)
        return h.sample(jax.random.key(0), d)

    check_derivatives(drawn, (factors, core, d))


@pytest.mark.parametrize("vector", [False, True])
def test_a_batch_is_each_of_its_matrices(rng, vector):
    factors, v = rng.normal(size=(3, 4, DIM)), rng.normal(size=(3, DIM))
    core = np.array([draws.symmetric(rng, 4) for _ in range(3)])
    d = 40 + rng.uniform(size=(3, DIM) if vector else 3)

    def functions(factors, core, d, v):
        a = lrj.SymmetricLowRank(factors, core).plus_diagonal(d)
        return a.solve(v), a.logdet(), a.inverse() @ v, a @ v

    batch, each = jax.jit(jax.vmap(functions))(factors, core, d, v), jax.jit(functions)
    for i in range(3):
        one = each(factors[i], core[i], d[i], v[i])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-9), batch, one)


def test_eigenpairs_beside_a_number(rng):
    a, dense = matrix(rng, 4, None, np.float64)
    values, rows = a.eigh()
    for i, value in enumerate(values):
        row = flat(jax.tree.map(lambda x, i=i: x[i], rows))
        np.testing.assert_allclose(dense @ row, value * row, atol=1e-12)
    np.testing.assert_array_equal(a.eigenvalues(), values)
    b, _ = matrix(rng, 4, 1e1, np.float64)
    with pytest.raises(ValueError, match="one number"):
        b.eigh()


def test_models_and_comparisons_take_either_class(rng):
    h, low = operator(rng, 3)
    g = rng.normal(size=DIM)
    dense = low + np.diag(np.full(DIM, 0.5))
    a = h.plus_diagonal(0.5)
    model = lrj.QuadraticModel(tree(g), jnp.zeros(()), tree(g), a)
    newton = flat(model.newton_step(40.0))
    np.testing.assert_allclose(newton, -np.linalg.solve(dense + 40 * np.eye(7), g), rtol=1e-10)
    s = flat(model.trust_region_step(0.3))
    # H + mu I is positive semidefinite and s on the boundary, where (H + mu I) s = -g.
    mu = -(s @ (dense @ s + g)) / (s @ s)
    np.testing.assert_allclose(np.linalg.norm(s), 0.3, rtol=1e-10)
    np.testing.assert_allclose(dense @ s + mu * s, -g, atol=1e-9)
    assert mu >= max(0, -np.linalg.eigvalsh(dense)[0]) - 1e-9

    steps = rng.normal(size=(3, DIM))
    pairs = lrj.SecantPairs(tree(steps), tree(steps @ dense))
    assert lrj.diagnose(a, pairs).secant_residual < 1e-12
    vector = h.plus_diagonal(tree(np.full(DIM, 0.5)))
    with pytest.raises(ValueError, match="one number"):
        lrj.QuadraticModel(tree(g), jnp.zeros(()), tree(g), vector).trust_region_step(1.0)

    def loss(x):
        x = ravel_pytree(x)[0]
        return x @ dense @ x / 2

    for either in (a, vector):
        found = lrj.compare_hvp(loss, either, tree(g), tree(steps))
        assert np.max(found.relative_error) < 1e-12


def test_half_precision_is_computed_in_float32(rng):
    h = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), operator(rng, 2)[0])
    a = h.plus_diagonal(2.0)
    v = tree(jnp.ones(7, jnp.bfloat16))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (a, v))
    for found, truth in ((a @ v, wide[0] @ wide[1]), (a.solve(v), wide[0].solve(wide[1]))):
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
        jax.tree.map(
            lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)), found, truth
        )


def test_repr_tells_shape_factors_and_dtype(rng):
    a, _ = matrix(rng, 4, None, np.float64)
    assert repr(a) == "DiagonalPlusLowRank(shape=(7, 7), factors=4, dtype=float64)"
    axes = jax.tree.unflatten(jax.tree.structure(a), [0] * 5)
    assert "core=0" in repr(axes)
