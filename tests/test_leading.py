"""The leading triplet and the top eigenpair against dense NumPy, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax._at_a_point.lanczos import signed
from tests import reference

KEY = jax.random.key(1)


@jax.jit
def triplet_and_vjp(a, cotangents):
    triplet, pull = jax.vjp(lrj.singular_triplet, a)
    return triplet, pull(cotangents)[0]


def matrix(rng, p, m, singular_values):
    k = len(singular_values)
    u = np.linalg.qr(rng.normal(size=(p, k)))[0]
    v = np.linalg.qr(rng.normal(size=(m, k)))[0]
    return u * singular_values @ v.T


def symmetric(rng, eigenvalues):
    q = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))[0]
    return q * eigenvalues @ q.T


def cotangents(rng, p, m):
    return rng.normal(), rng.normal(size=p), rng.normal(size=m)


@pytest.mark.parametrize(("p", "m"), [(30, 50), (50, 30), (6, 1)])
def test_the_triplet_is_that_of_the_dense_svd_and_its_vjp_that_of_the_four_systems(rng, p, m):
    rest = min(p, m) - 1
    tails = {
        "well apart": np.linspace(0.5, 0.1, rest),
        "close": 0.99 * np.linspace(1, 0, rest),
        "repeated": np.full(rest, 0.9),
        "of rank two": np.where(np.arange(rest) == 0, 0.7, 0),
    }
    for name, tail in tails.items():
        a, bars = matrix(rng, p, m, np.append(1, tail)), cotangents(rng, p, m)
        found, gradient = triplet_and_vjp(a, bars)
        for x, truth in zip(found, reference.leading_triplet(a), strict=True):
            np.testing.assert_allclose(x, truth, atol=1e-12, err_msg=name)
        residual = a.T @ (a @ found[2]) - found[0] ** 2 * found[2]
        assert np.linalg.norm(residual) < 64 * np.finfo(float).eps, name
        truth = reference.first_order_svd_vjp(a, *bars)
        np.testing.assert_allclose(gradient, truth, atol=1e-10, rtol=1e-10, err_msg=name)


def compositions(value, args, direction):
    """A slope, and the three derivatives of second order along a direction."""

    def slope(*args):
        return jax.jvp(value, args, direction)[1]

    def along(*args):
        everything = tuple(range(len(args)))
        return sum(map(jnp.vdot, jax.grad(value, everything)(*args), direction))

    reverse, mixed = jax.grad(along, 1)(*args), jax.grad(slope, 0)(*args)
    return slope(*args), reverse, mixed, jax.jvp(slope, args, direction)[1]


def test_a_function_on_pytrees_differentiates_in_what_it_closes_over(rng):
    """`[[0, c], [B, sin b]]` in blocks, as a function of c and B, against the dense SVD."""
    args = np.array(0.7), rng.normal(size=(4, 5))
    direction = np.array(0.4), rng.normal(size=(4, 5))
    xi, phi, psi = cotangents(rng, 5, 6)
    like = {"p": jax.ShapeDtypeStruct((5,), float), "q": jax.ShapeDtypeStruct((), float)}

    def triplet(c, b):
        def product(v):
            return [c * v["q"], b @ v["p"] + jnp.sin(b[:, 0]) * v["q"]]

        sigma, u, v = lrj.singular_triplet(product, like=like)
        return sigma, jnp.append(*u), jnp.append(v["p"], v["q"])

    def dense_triplet(c, b):
        bottom = jnp.concatenate([b, jnp.sin(b[:, :1])], axis=1)
        a = jnp.concatenate([c * jnp.eye(6)[5:], bottom])
        u, s, vt = jnp.linalg.svd(a, full_matrices=False)
        sign = jnp.sign(vt[0, jnp.argmax(jnp.abs(vt[0]))])
        return s[0], sign * u[:, 0], sign * vt[0]

    def results(triplet):
        def value(c, b):
            sigma, u, v = triplet(c, b)
            return xi * sigma**2 + jnp.vdot(phi, u) + jnp.vdot(psi, v) + sigma * jnp.sum(u**3)

        return triplet(*args), compositions(value, args, direction)[:2]

    found, truth = (jax.jit(lambda f=f: results(f))() for f in (triplet, dense_triplet))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9), found, truth)


def test_a_low_rank_operator_has_the_triplet_of_its_matrix_and_its_vjp(rng):
    left = {"x": rng.normal(size=(3, 4)), "y": rng.normal(size=(3, 2, 2))}
    core, right = rng.normal(size=(3, 2)), rng.normal(size=(2, 5))
    xi, phi, psi = cotangents(rng, 8, 5)

    @jax.jit
    def triplet_and_gradient(operator):
        triplet, pull = jax.vjp(lrj.singular_triplet, operator)
        return triplet, pull((xi, {"x": phi[:4], "y": phi[4:].reshape(2, 2)}, psi))[0]

    (sigma, u, v), gradient = triplet_and_gradient(lrj.LowRank(left, core, right))
    rows = np.concatenate([left["x"], left["y"].reshape(3, 4)], axis=1)
    a = rows.T @ core @ right
    truth = reference.leading_triplet(a)
    np.testing.assert_allclose(sigma, truth[0], rtol=1e-12)
    np.testing.assert_allclose(np.append(u["x"], u["y"]), truth[1], atol=1e-12)
    np.testing.assert_allclose(v, truth[2], atol=1e-12)
    bar = reference.first_order_svd_vjp(a, xi, phi, psi)
    np.testing.assert_allclose(gradient.core, rows @ bar @ right.T, atol=1e-10)
    np.testing.assert_allclose(gradient.right, core.T @ rows @ bar, atol=1e-10)
    np.testing.assert_allclose(gradient.left["x"], (core @ right @ bar.T)[:, :4], atol=1e-10)


def test_a_tied_leading_value_has_a_derivative_and_its_vectors_have_none(rng):
    u_bar, v_bar = rng.normal(size=6), rng.normal(size=5)
    tied, near, zero = ([2, 2, 1], [2, 2 - 1e-9, 1], [0, 0])
    for values in (tied, near, zero):
        a = matrix(rng, 6, 5, values)
        (sigma, u, v), gradient = triplet_and_vjp(a, (1.0, 0 * u_bar, 0 * v_bar))
        np.testing.assert_allclose(sigma, values[0], atol=1e-12)
        np.testing.assert_allclose([u @ u, v @ v], 1, rtol=1e-12)
        np.testing.assert_allclose(a @ v, sigma * u, atol=1e-12)
        np.testing.assert_allclose(gradient, np.outer(u, v), atol=1e-12)
        assert np.isnan(triplet_and_vjp(a, (0.0, u_bar, 0 * v_bar))[1]).all()
        assert np.isnan(triplet_and_vjp(a, (0.0, 0 * u_bar, v_bar))[1]).all()
    # Unit vectors stay so, however they turn.
    a = matrix(rng, 6, 5, tied)
    _, u, v = triplet_and_vjp(a, (0.0, u_bar, v_bar))[0]
    np.testing.assert_allclose(triplet_and_vjp(a, (0.0, u, v))[1], 0, atol=1e-12)


def test_the_search_outlives_its_krylov_space_and_each_lane_of_vmap_its_neighbours():
    """The space of a start is exhausted after as many products as there are distinct values."""
    lanes = [np.eye(20), np.ones((20, 20)), np.full((20, 20), np.nan), np.zeros((20, 20))]
    lanes += [np.diag(np.arange(20.0) % 3), np.where(np.eye(20) > 0, np.inf, 0.0)]
    sigma, u, v = jax.jit(jax.vmap(lrj.singular_triplet))(np.stack(lanes))
    np.testing.assert_allclose(sigma, [1, 20, np.nan, 0, 2, np.nan], rtol=1e-13)
    finite = np.isfinite(sigma)
    for x in (u, v):
        np.testing.assert_array_equal(np.isfinite(x), np.broadcast_to(finite[:, None], x.shape))
        np.testing.assert_allclose(np.linalg.norm(x, axis=1)[finite], 1, rtol=1e-13)


def test_products_too_coarse_for_the_dtype_give_nan(rng):
    """Products in float32 of a function from float64 to float64."""
    a = jnp.asarray(matrix(rng, 25, 20, np.append(1, np.linspace(0.9, 0, 19))), jnp.float32)
    v = jnp.zeros(20)

    def coarse(v):
        return (a @ v.astype(jnp.float32)).astype(float)

    triplet = jax.jit(lambda: lrj.singular_triplet(coarse, like=v))()
    assert all(np.isnan(x).all() for x in triplet)


def test_products_with_rounding_of_their_own_and_of_another_dtype(rng):
    """A part of the product is in float32; the whole space, of 8 dimensions, is searched once."""
    a = matrix(rng, 10, 8, np.linspace(1, 0.3, 8))
    v = jnp.zeros(8)

    def nearly(v):
        return a @ v + 1e-3 * (v.astype(jnp.float32)[0] / 3).astype(float)

    sigma = jax.jit(lambda: lrj.singular_triplet(nearly, like=v)[0])()
    truth = reference.leading_triplet(a + 1e-3 / 3 * np.eye(8)[:1])[0]
    np.testing.assert_allclose(sigma, truth, rtol=1e-9)
    v = v.astype(jnp.float32)
    single = jax.jit(lambda: lrj.singular_triplet(lambda v: a @ v.astype(float), like=v))()
    assert single[2].dtype == jnp.float32
    np.testing.assert_allclose(single[0], 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "size", "accuracy"),
    [(jnp.float32, 1e-18, 1e-5), (jnp.float32, 1e18, 1e-5), (jnp.bfloat16, 1, 0.05)],
)
def test_low_precision_and_any_magnitude(rng, dtype, size, accuracy):
    a = jnp.asarray(size * matrix(rng, 30, 50, np.append(1, np.linspace(0.9, 0, 29))), dtype)
    bars = cotangents(rng, 30, 50)
    wide = np.asarray(a, float)
    truth = reference.leading_triplet(wide)
    dtypes = (jnp.float32, dtype, dtype)
    bars = tuple(map(jnp.asarray, bars, dtypes))
    (sigma, u, v), gradient = triplet_and_vjp(a, bars)
    assert (sigma.dtype, u.dtype, v.dtype) == dtypes
    np.testing.assert_allclose(sigma, truth[0], rtol=accuracy)
    np.testing.assert_allclose(np.asarray(u, float), truth[1], atol=accuracy)
    np.testing.assert_allclose(np.asarray(v, float), truth[2], atol=accuracy)
    exact = reference.first_order_svd_vjp(wide, *(np.asarray(b, float) for b in bars))
    assert reference.relative_error(gradient, exact) < 3 * accuracy


def quartic(x, h):
    return jnp.vdot(x, h @ x) / 2 + jnp.sum(x**4) / 20


@jax.jit
def pair_and_vjp(x, h, bars):
    pair, pull = jax.vjp(lambda x, h: lrj.top_eigenpair(quartic)(x, h, key=KEY)[:2], x, h)
    return pair, pull(bars)


@pytest.mark.parametrize("v", [[1.0, -1.0], [-1.0, 1.0], [0.5, -2.0], [-2.0, 1.0]])
def test_the_sign_of_a_vector_is_that_of_its_first_largest_entry(v):
    v = np.array(v)
    np.testing.assert_array_equal(signed(v, v), v * np.sign(v[np.argmax(np.abs(v))]))


def test_the_top_eigenpair_is_the_largest_in_magnitude_at_either_end(rng):
    """Also where the larger end is the harder one to resolve, or the ends nearly tie."""
    spectra = [
        np.append(-3, np.linspace(2.97, -2.9, 39)),
        np.append(3, np.linspace(2.97, -2.9, 39)),
        np.append(-1, np.linspace(0.99999, -0.9, 39)),
        np.concatenate([[1, -1.000001], np.linspace(-0.9999, -0.9, 38)]),
    ]
    v_bar = rng.normal(size=40)
    for spectrum in spectra:
        h = symmetric(rng, spectrum)
        (value, vector), (_, h_bar) = pair_and_vjp(np.zeros(40), h, (2.0, v_bar))
        values, vectors = np.linalg.eigh(h)
        top = np.argmax(np.abs(values))
        truth = vectors[:, top] * np.sign(vectors[np.argmax(np.abs(vectors[:, top])), top])
        np.testing.assert_allclose(value, values[top], rtol=1e-12)
        gap = np.min(np.abs(np.delete(values, top) / values[top] - 1))
        allowed = np.finfo(float).eps ** 0.5 / gap  # that of a residual of sqrt(eps)
        assert np.linalg.norm(vector - truth) < allowed
        solution = np.linalg.pinv(values[top] * np.eye(40) - h, rcond=1e-12) @ v_bar
        slope = np.outer(2 * truth + solution, truth)
        allowed = min(2 * allowed * (1 + np.linalg.norm(solution)), 1e-3)
        np.testing.assert_allclose(h_bar + h_bar.T, slope + slope.T, atol=allowed)


def test_the_tied_top_eigenvalue_has_a_derivative_and_its_vector_has_none(rng):
    tied = symmetric(rng, np.append([3, 3], np.linspace(-2, 2, 38)))
    bar = rng.normal(size=40)
    (_, vector), (_, h_bar) = pair_and_vjp(np.zeros(40), tied, (1.0, 0 * bar))
    np.testing.assert_allclose(h_bar, np.outer(vector, vector), atol=1e-12)
    assert np.isnan(pair_and_vjp(np.zeros(40), tied, (0.0, bar))[1][1]).all()


def test_derivatives_of_the_top_eigenpair_in_the_point_and_the_data_in_all_modes(rng):
    args = rng.normal(size=5) / 10, symmetric(rng, [-3.0, 2.5, 1, -1, 0.5])
    direction = rng.normal(size=5), symmetric(rng, np.arange(5.0))
    bar = rng.normal(size=5)

    def dense(x, h):
        w, v = jnp.linalg.eigh((h + h.T) / 2 + jnp.diag(0.6 * x**2))
        return w[0], v[:, 0] * jnp.sign(v[jnp.argmax(jnp.abs(v[:, 0])), 0])

    def results(pair):
        def value(x, h):
            w, v = pair(x, h)
            return w**2 + jnp.vdot(bar, v) + jnp.sum(v**3)

        return compositions(value, args, direction)

    def exact(x, h):
        return lrj.top_eigenpair(quartic)(x, h, key=KEY)[:2]

    found, truth = (jax.jit(lambda f=f: results(f))() for f in (exact, dense))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9), found, truth)


def test_the_eigenvector_has_the_structure_and_dtypes_of_the_point():
    def loss(scale, point):
        return scale * point["a"] ** 2 - 3 * jnp.sum(point["b"].astype(float) ** 2)

    point = {"a": jnp.ones(()), "b": jnp.ones((1, 2), jnp.float32), "c": jnp.zeros((0,))}
    value, vector, _ = jax.jit(lambda *args: lrj.top_eigenpair(loss, 1)(*args, key=KEY))(
        -4.0, point
    )
    np.testing.assert_allclose(value, -8, rtol=1e-6)
    np.testing.assert_allclose(vector["a"], 1, rtol=1e-6)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), vector) == jax.tree.map(
        lambda x: (x.shape, x.dtype), point
    )
    value, (scale,), _ = jax.jit(lambda *args: lrj.top_eigenpair(loss, (0,))(*args, key=KEY))(
        -4.0, point
    )
    assert (value, scale) == (0, 1)


def test_on_the_host_the_top_eigenpair_is_that_of_one_program(rng):
    """And says how many products it took, as counted where they run."""
    h, x, taken = symmetric(rng, np.append(-3, np.linspace(2.9, -2.9, 39))), rng.normal(size=40), []

    def loss(x, h):
        jax.debug.callback(lambda: taken.append(1))
        return quartic(x, h)

    value, vector = pair_and_vjp(x, h, (1.0, x))[0]
    found, direction, info = lrj.top_eigenpair(loss)(x, h, key=KEY)
    jax.effects_barrier()
    np.testing.assert_allclose(found, value, rtol=1e-12)
    np.testing.assert_allclose(direction, vector, atol=1e-9)
    assert info.converged
    assert int(info.products) == len(taken)
    program = jax.jit(lambda x, h: lrj.top_eigenpair(quartic)(x, h, key=KEY)[2])(x, h)
    assert abs(int(program.products) - len(taken)) <= 16  # rounding may cost two cycles


def test_a_top_eigenpair_that_is_not_found_is_nan_and_says_so():
    value, vector, info = lrj.top_eigenpair(lambda x: jnp.nan * jnp.sum(x**2))(np.ones(9), key=KEY)
    assert not info.converged
    assert np.isnan(value)
    assert np.isnan(vector).all()
