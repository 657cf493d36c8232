"""The operator as a plain function and a plain pytree in other libraries' hands."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import orbax.checkpoint
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj

DAMPING = 0.3


def tree(rows):
    """Rows of 8 numbers as a pytree of mixed leaf shapes."""
    lead = rows.shape[:-1]
    return {"a": rows[..., :2], "b": (rows[..., 2:].reshape(*lead, 2, 3), None)}


def array(rows):
    return rows


def semidefinite(rng, form):
    """A semidefinite operator of rank 3 and a vector."""
    root = rng.normal(size=(3, 3))
    factors = form(jnp.asarray(rng.normal(size=(3, 8))))
    h = lrj.SymmetricLowRank(factors, jnp.asarray(root @ root.T))
    return h, form(jnp.asarray(rng.normal(size=8)))


def damped(h):
    return lambda v: jax.tree.map(lambda hv, x: hv + DAMPING * x, h.mv(v), v)


def assert_close(found, expected, rtol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    found, expected = ravel_pytree(found)[0], ravel_pytree(expected)[0]
    assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected)


def assert_equal_trees(found, expected):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        x, y = (jax.random.key_data(z) if is_key(z) else z for z in (x, y))
        np.testing.assert_array_equal(x, y)


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def test_conjugate_gradients_of_jax_solve_what_solve_does(rng):
    h, b = semidefinite(rng, tree)
    x, _ = jax.scipy.sparse.linalg.cg(damped(h), b, tol=1e-13)
    assert_close(x, h.solve(b, DAMPING), 1e-10)


def test_conjugate_gradients_of_lineax_solve_what_solve_does(rng):
    h, b = semidefinite(rng, tree)
    a = lineax.FunctionLinearOperator(
        damped(h), jax.eval_shape(lambda: b), lineax.positive_semidefinite_tag
    )
    solution = lineax.linear_solve(a, b, lineax.CG(rtol=1e-13, atol=0))
    assert_close(solution.value, h.solve(b, DAMPING), 1e-10)


def test_lineax_composes_the_product_and_makes_its_matrix(rng):
    h, b = semidefinite(rng, array)
    structure = jax.eval_shape(lambda: b)
    a = lineax.FunctionLinearOperator(h.mv, structure, lineax.symmetric_tag)
    np.testing.assert_allclose(a.as_matrix(), h.to_dense(), atol=1e-12)
    assert_close((DAMPING * a.T).mv(b), (DAMPING * h) @ b, 1e-14)


def test_sparse_eigenvalues_of_scipy_are_those_of_eigh(rng):
    factors, core = rng.normal(size=(4, 40)), np.diag([3.0, -2.0, 1.0, 0.5])
    h = lrj.SymmetricLowRank(tree(factors[:, :8]) | {"c": factors[:, 8:]}, core)
    start, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], h.factors))

    def product(v):
        return np.asarray(ravel_pytree(h.mv(unravel(jnp.asarray(v.ravel()))))[0])

    a = scipy.sparse.linalg.LinearOperator(h.shape, matvec=product, dtype=h.dtype)
    values, vectors = scipy.sparse.linalg.eigsh(a, k=4, v0=np.asarray(start))
    order = np.argsort(-np.abs(values))
    expected, rows = h.eigh()
    np.testing.assert_allclose(values[order], expected, rtol=1e-12)
    rows = jax.vmap(lambda row: ravel_pytree(row)[0])(rows)
    np.testing.assert_allclose(np.abs(rows @ vectors[:, order]), np.eye(4), atol=1e-10)


def saved_and_restored(folder, state):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", jax.eval_shape(lambda: state))


def test_operators_keys_and_states_come_back_from_orbax_bit_for_bit(rng, tmp_path):
    h, b = semidefinite(rng, tree)
    left, core, right = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3), (2, 4), (4, 5))
    )
    a = lrj.LowRank({"x": left}, core, right.astype(jnp.bfloat16))
    # The state of a line search holds what is not finite before the first step.
    search = lrj.optim.secant_newton(memory_size=2).init(b)
    saved = {"h": h, "a": a, "key": jax.random.key(0), "search": search}
    restored = saved_and_restored(tmp_path, saved)
    assert_equal_trees(restored, saved)
    assert_equal_trees(restored["h"] @ b, h @ b)


def rosenbrock(params):
    x = jnp.concatenate([params["a"], params["b"].ravel()])
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def test_training_goes_on_from_an_orbax_checkpoint_bit_for_bit(tmp_path):
    opt = lrj.optim.secant_newton(0.1, memory_size=3)

    @jax.jit
    def step(params, state):
        updates, state = opt.update(jax.grad(rosenbrock)(params), state, params)
        return optax.apply_updates(params, updates), state

    def after(steps, params, state):
        for _ in range(steps):
            params, state = step(params, state)
        return params, state

    start = {"a": jnp.array([-1.2, 1.0]), "b": jnp.array([[0.5], [-0.5]])}
    middle = after(5, start, opt.init(start))
    restored = saved_and_restored(tmp_path, middle)
    assert_equal_trees(restored, middle)
    assert_equal_trees(after(5, *restored), after(5, *middle))
