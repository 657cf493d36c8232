"""Passes in pieces, and packed leaves: the same numbers and derivatives as in one piece."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax._at_a_point import differences, errors, krylov
from lowrank_jax._core import structure, tall, xla
from tests import draws, reference


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(xla, "PIECE_SIZE", 64)


def scaled_gram(t, x, y):
    return t * x.reshape(len(x), -1) @ y.reshape(len(y), -1).T


def products(t, x, y):
    return tall.combine(t, x) - y


def trees(rng):
    """Two sets of three rows; one leaf has a rest, one fits its pieces, one is not cut."""
    shapes = {"rest": (50,), "fits": (21, 3), "small": (4,)}
    return [{name: rng.normal(size=(3, *shape)) for name, shape in shapes.items()} for _ in "xy"]


def dense(rows):
    return np.concatenate([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(rows)], axis=1)


@pytest.mark.usefixtures("small_pieces")
def test_a_sum_and_rows_of_pieces_are_those_of_the_whole(rng):
    x, y = trees(rng)
    t = rng.normal(size=(2, 3))
    summed = jax.jit(lambda x, y: xla.blockwise_sum(scaled_gram, 2.0, x, y))
    assert "while" in summed.lower(x, y).as_text()
    np.testing.assert_allclose(summed(x, y), 2 * dense(x) @ dense(y).T, rtol=1e-13)
    y = jax.tree.map(lambda leaf: leaf[:2], y)
    rows = jax.jit(lambda x, y: xla.blockwise_map(products, t, x, y))
    assert "while" in rows.lower(x, y).as_text()
    for found, a, b in zip(*map(jax.tree.leaves, (rows(x, y), x, y)), strict=True):
        np.testing.assert_allclose(found, np.tensordot(t, a, 1) - b, rtol=1e-13, atol=1e-14)


@pytest.mark.usefixtures("small_pieces")
def test_derivatives_of_pieces_are_those_of_the_whole_and_of_chains_contain_no_loop(rng):
    (x, y), t = trees(rng), rng.normal(size=(3, 3))

    def both(t, x, y):
        total = jnp.sum(xla.blockwise_sum(scaled_gram, t[0, 0], x, y) ** 2)
        known = jnp.sum(xla.with_derivative_of(jnp.ones((3, 3)), scaled_gram, t[0, 0], x, y))
        rows = xla.blockwise_map(products, t, x, y)
        return total + known + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(rows))

    def truth(t, x, y):
        x, y = (
            jnp.concatenate([leaf.reshape(3, -1) for leaf in jax.tree.leaves(rows)], axis=1)
            for rows in (x, y)
        )
        gram = t[0, 0] * x @ y.T
        return jnp.sum(gram**2) + jnp.sum(gram) + jnp.sum((t @ x - y) ** 2)

    found, expected = (jax.grad(f, argnums=(0, 1, 2))(t, x, y) for f in (both, truth))
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)
    assert "while" not in jax.jit(jax.grad(both)).lower(t, x, y).as_text()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("extrapolate", [0, 2 / 3])
def test_a_fit_in_pieces_is_the_fit(rng, extrapolate):
    s = rng.normal(size=(5, 173))
    y = s @ draws.symmetric(rng, 173)
    fit = jax.jit(lambda s, y: lrj.fit(lrj.SecantPairs(s, y), extrapolate=extrapolate))
    assert "while" in fit.lower(s, y).as_text()
    truth = reference.fit(s, y, extrapolate)
    assert reference.relative_error(fit(s, y).to_dense(), truth) < 1e-11
    traces = jax.vmap(lambda s, y: fit(s, y).trace())
    found = traces(np.stack([s, 2 * s]), np.stack([y, y]))
    np.testing.assert_allclose(found, np.trace(truth) * np.array([1, 0.5]), rtol=1e-10)


def test_off_a_cpu_chains_take_little_memory_beside_their_rows(monkeypatch):
    """A product alone, which takes none, is not cut."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(xla, "LARGE_PIECE_SIZE", 2**12)
    k, dim = 8, 2**15 + 1
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    h, v, rows = lrj.SymmetricLowRank(f32((k, dim)), f32((k, k))), f32((dim,)), 4 * k * dim
    for f, most in (
        (lambda h, v: lrj.fit((h.factors, h.factors)).factors, 0.5),  # and 2 that it returns
        (lambda h, v: h.inverse(1.0).low_rank.factors, 0.5),
        (lambda h, v: (h.trace(), h.diagonal()), 0.5),
        (lambda h, v: h.solve(v, 1.0), 1.5),  # with a basis of the factors
        (lambda h, v: h.eigh(), 1.5),
    ):
        program = jax.jit(f).lower(h, v)
        assert "dynamic_slice" in program.as_text()
        assert program.compile().memory_analysis().temp_size_in_bytes < most * rows
    assert "while" not in jax.jit(lambda h, v: h @ v).lower(h, v).as_text()


def test_packed_rows_unpack_to_what_they_were(rng):
    rows = {"a": rng.normal(size=(3, 2, 2)), "big": rng.normal(size=(3, 70_000))}
    rows |= {"b": rng.normal(size=(3,)), "none": np.zeros((3, 0))}
    v = jax.tree.map(lambda leaf: leaf[0], rows)
    packed = structure.pack(rows)
    assert [leaf.shape for leaf in packed] == [(3, 5), (3, 70_000)]
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), packed)
    expected = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), rows)
    chex.assert_trees_all_equal(structure.unpack(twice, v), expected)
    mixed = {"a": rows["a"], "b": np.float32(rows["b"])}
    assert structure.pack(mixed) is mixed


def test_parts_of_one_size_are_unpacked_by_one_kernel(rng):
    """Their places are told at run time; derivatives, forward and back, are those of a split."""
    rows = [rng.normal(size=(3, 2, 2)) for _ in range(5)]
    v = [leaf[0] for leaf in rows]
    (packed,) = structure.pack(rows)

    def unpack(packed):
        return structure.unpack([packed], v)

    text = jax.jit(unpack).lower(packed).as_text()
    places = [line for line in text.splitlines() if "slice" in line]
    assert len(places) == 5
    assert all("dynamic_slice" in place for place in places)
    assert "select" not in text  # among starts that might be negative
    found, pull = jax.vjp(unpack, packed)
    chex.assert_trees_all_equal(found, rows)
    np.testing.assert_array_equal(pull(rows)[0], packed)
    chex.assert_trees_all_equal(jax.jvp(unpack, (packed,), (2 * packed,))[1], [2 * r for r in rows])


@pytest.mark.parametrize("dim", [2**15 + 7, 2**18, 2**20])
def test_long_sums_in_single_precision_keep_its_digits(rng, dim):
    """Alone and beside a derivative; running sums of these are off by 1e-5, 8e-5 and 3e-4."""
    x = rng.normal(size=(8, dim)) * np.geomspace(1, 1e-3, dim)
    x = x.astype(np.float32)
    truth, size = x.astype(np.float64) @ x[0], np.linalg.norm(x, axis=1) * np.linalg.norm(x[0])
    for f in (tall.gram, lambda x, v: jax.vjp(tall.gram, x, v)[0]):
        found = np.asarray(jax.jit(f)(x, x[0]))
        assert np.max(np.abs(found - truth) / size) < 3e-6


def test_sums_of_many_rows_are_sums_of_sums(rng):
    """One large term and a thousand that it swallows one by one, but not together."""
    t = np.full((1, 1025), 1, np.float32)
    x = np.full((1025, 3), 2.0**-25, np.float32)
    x[0] = 1
    grouped = tall.combine(t, x, grouped=True)
    np.testing.assert_allclose(grouped, 1 + 1024 * 2.0**-25, rtol=3e-6)  # one by one: 3e-5


@pytest.mark.parametrize(("batch_size", "shape"), [(1, (4,)), (2, (2, 4)), (None, (6, 4))])
def test_rows_one_at_a_time_are_no_batch_of_one(rng, batch_size, shape):
    a, x = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))
    seen = []
    jaxpr = jax.make_jaxpr(lambda x: xla.map_rows(lambda row: a @ row, x, batch_size))(x)
    np.testing.assert_allclose(xla.map_rows(lambda row: a @ row, x, batch_size), x @ a.T)

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                seen.append(equation.outvars[0].aval.shape)
            for inner in jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"),
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    collect(inner)

    collect(jaxpr.jaxpr)
    assert {tuple(sorted(s)) for s in seen} == {tuple(sorted(shape))}


def test_pairs_are_written_where_they_are():
    """A program that reads rows after it has written some begins with a copy of all of them."""
    x, key, number = jnp.zeros(10_000), jax.random.key(0), jnp.float32(1)
    pairs, measured = krylov.begin(x, 2, 16, None), errors.nothing(x, 32, 0.0)
    find = lrj.lowrank_hessian(
        lambda x: jnp.sum(x**4), 2, passes=16, step=0.1, solver=lambda pairs: pairs
    )
    programs = {
        "directions": krylov.choose.lower(pairs, 0, 2, key),
        "a gradient": differences._put.lower(pairs, 0, x, x, x, x, number, number),
        "a product": krylov._put.lower(pairs.grad_diffs, 0, x),
        "lengths": differences._finished.lower(pairs, number, None, 2),
    }
    if jax.__version_info__ >= (0, 11):  # 0.10 removes barriers before it inserts copies
        programs |= {
            "lengths and errors": differences._finished.lower(pairs, None, measured, 2),
            "all in one": jax.jit(lambda x, key: find(x, key=key)).lower(x, key),
        }
    rows = {
        name: program.compile().memory_analysis().temp_size_in_bytes / x.nbytes
        for name, program in programs.items()
    }
    assert max(rows.values()) < 8, rows  # of 32 steps and 32 gradient differences
