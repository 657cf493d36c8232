"""Work at a point where nothing is traced: a loop on the host over programs compiled once."""

import gc
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax._clouds import selection
from lowrank_jax._operators.reduced import reduce
from tests import draws, reference
from tests.compilations import counted

KEY = jax.random.key(0)
DIM = 12


def quartic(x, h, scale=1.0):
    return scale * (jnp.vdot(x, h @ x) / 2 + jnp.sum(x**4) / 20)


def model_hessian(*args, **options):
    at = lrj.quadratic_model_at(*args, **options)
    return lambda *args, key: at(*args, key=key).hessian


def from_product(make):
    return lambda loss, *args, **options: lrj.lowrank_from_product(make(loss), *args, **options)


AT_A_POINT = {
    "lowrank_hessian": lrj.lowrank_hessian,
    "quadratic_model_at": model_hessian,
    "from exact products": from_product(lrj.hvp),
    "from differences": from_product(partial(lrj.gradient_difference, step=1e-5)),
    "top_eigenpair": lambda loss, _: lrj.top_eigenpair(loss),
}


def setting(rng):
    return rng.normal(size=DIM), draws.symmetric(rng, DIM)


@pytest.mark.parametrize("name", AT_A_POINT)
def test_the_same_call_written_anew_compiles_nothing(rng, name):
    x, h = setting(rng)

    def loss(x, h):
        return quartic(x, h)

    found = [jax.block_until_ready(AT_A_POINT[name](loss, 2)(x, h, key=KEY)) for _ in range(2)]
    with counted() as programs:
        found.append(jax.block_until_ready(AT_A_POINT[name](loss, 2)(x + 1, 2 * h, key=KEY)))
    assert programs == []
    with counted() as programs:
        AT_A_POINT[name](lambda x, h: loss(x, h), 2)(x, h, key=KEY)
    assert 1 <= len(programs) <= 2  # the gradient or the product of another loss alone


@pytest.mark.parametrize("name", AT_A_POINT)
def test_a_dropped_loss_is_collected_with_its_data(rng, name):
    class Data:
        def __init__(self):
            self.h = jnp.asarray(draws.symmetric(rng, DIM))

    data = Data()

    def loss(x, data=data):
        return quartic(x, data.h)

    dropped = [weakref.ref(each) for each in (loss, data, data.h)]
    jax.block_until_ready(AT_A_POINT[name](loss, 2)(np.ones(DIM), key=KEY))
    del loss, data
    gc.collect()
    assert [each() for each in dropped] == [None, None, None]


OF_AN_OPERATOR = {
    "eigh": lambda h: h.eigh(),
    "eigenvalues": lambda h: h.eigenvalues(),
    "inertia": lambda h: h.inertia(),
    "truncate": lambda h: h.truncate(2),
    "positive_part": lambda h: h.positive_part(),
    "map_spectrum": lambda h: h.map_spectrum(jnp.abs),
    "beside a number": lambda h: h.plus_diagonal(2.0).eigh(),
    "solve": lambda h: h.solve(jnp.ones(11), 2.0),
    "logdet": lambda h: h.logdet(2.0),
    "inverse": lambda h: h.inverse(2.0),
    "sample": lambda h: h.sample(KEY, 2.0),
}
OF_PAIRS = {
    "diagnose": lambda pairs: lrj.diagnose(lrj.fit(pairs), pairs),
    "choose_extrapolation": lrj.choose_extrapolation,
    "choose_shift": lrj.choose_shift,
}


SHARED = {
    "operator": (
        lambda rng: lrj.SymmetricLowRank(rng.normal(size=(5, 11)), draws.symmetric(rng, 5)),
        OF_AN_OPERATOR,
        [reduce],
    ),
    "pairs": (
        lambda rng: lrj.SecantPairs(*rng.normal(size=(2, 5, 11))),
        OF_PAIRS,
        [selection.compressed, selection._left_out_errors],
    ),
}


@pytest.mark.parametrize("given", SHARED)
def test_what_is_most_to_compile_is_compiled_once_for_all_that_is_asked(rng, given):
    make, calls, shared = SHARED[given]
    given, names = make(rng), [f"jit({program.__name__})" for program in shared]
    for call in calls.values():
        for program in shared:
            program.clear_cache()
        with counted() as programs:
            call(given)
        assert [programs.count(name) for name in names] == [1] * len(names)
    with counted() as programs:
        for call in calls.values():
            call(given)
    assert not set(names) & set(programs)


def test_the_method_of_an_object_is_known_again_and_an_object_that_may_change_is_not(rng):
    x, h = setting(rng)

    class Model:
        def __init__(self, h):
            self.h = h

        def loss(self, x):
            return quartic(x, self.h)

    class Changing(Model):
        __hash__ = None

        def __call__(self, x):
            return self.loss(x)

    model, changing = Model(h), Changing(h)
    first = lrj.lowrank_hessian(model.loss, 2)(x, key=KEY)
    with counted() as programs:
        again = lrj.lowrank_hessian(model.loss, 2)(x, key=KEY)
    assert programs == []
    np.testing.assert_array_equal(first.core, again.core)
    changed = lrj.lowrank_hessian(changing, 2)(x, key=KEY)
    np.testing.assert_array_equal(first.core, changed.core)
    changing.h = 0 * h
    changed = lrj.lowrank_hessian(changing, DIM)(x, key=KEY)
    exact = jax.hessian(quartic)(x, 0 * h)
    assert reference.relative_error(changed.to_dense(), exact) < 1e-4


def test_arguments_that_are_no_arrays_are_part_of_the_program(rng):
    x, h = setting(rng)

    def loss(kind, x, terms, h, settings):
        assert isinstance(terms, int)
        kinds = {"quartic": quartic, "none": lambda x, h, scale: 0 * jnp.sum(x)}
        return sum(kinds[kind](x, h, settings["scale"]) for _ in range(terms))

    hessian_at = lrj.lowrank_hessian(loss, DIM, 1)
    exact = jax.hessian(quartic)(x, h)
    for kind, terms, scale in (("quartic", 1, 1.0), ("quartic", 2, 0.5), ("none", 1, 1.0)):
        found = hessian_at(kind, x, terms, h, {"scale": scale, "note": object()}, key=KEY)
        expected = exact * float(kind == "quartic") * terms * scale
        np.testing.assert_allclose(found.to_dense(), expected, atol=1e-4)


def test_a_loss_that_closes_over_a_tracer_is_one_program(rng):
    x, h = setting(rng)
    scales = jnp.array([1.0, 2.0])

    def trace_of(scale, at=lrj.lowrank_hessian, probes=DIM):
        return at(lambda x: quartic(x, h, scale), probes, passes=1)(x, key=KEY).trace()

    exact = jnp.trace(jax.hessian(quartic)(x, h))
    np.testing.assert_allclose(jax.vmap(trace_of)(scales), exact * scales, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(trace_of)(1.0), exact, rtol=1e-5)
    exact_products = partial(trace_of, at=from_product(lrj.hvp))
    np.testing.assert_allclose(jax.vmap(exact_products)(scales), exact * scales, rtol=1e-9)
    top = jax.vmap(lambda s: lrj.top_eigenpair(lambda x: quartic(x, h, s))(x, key=KEY)[0])(scales)
    np.testing.assert_allclose(top[1], 2 * top[0], rtol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 2, 3, 100])
def test_the_host_gives_what_one_program_gives(rng, batch_size):
    """Also with several gradients at once, one of which is taken twice where they do not add up."""
    x, h = setting(rng)
    points = []

    def loss(tree, h):
        jax.debug.callback(lambda _: points.append(1), tree["a"])
        return quartic(jnp.concatenate([tree["a"], tree["b"].ravel()]), h)

    tree = {"a": x[:4], "b": x[4:].reshape(4, 2)}
    hessian_at = lrj.lowrank_hessian(loss, 4, batch_size=batch_size, step=1e-5)
    found = hessian_at(tree, h, key=KEY)
    jax.effects_barrier()
    assert len(points) == {3: 13}.get(batch_size, 9)
    expected = jax.jit(hessian_at)(tree, h, key=KEY)
    assert reference.relative_error(found.to_dense(), expected.to_dense()) < 1e-5


def test_numpy_products_are_called_as_they_are(rng):
    x, h = setting(rng)
    seen = []

    def product(x, v, h):
        assert isinstance(x, np.ndarray)
        assert isinstance(v, np.ndarray)
        seen.append(np.linalg.norm(v))
        y = h @ v
        x[:] = v[:] = 0  # its own copies
        return y

    found = lrj.lowrank_from_product(product, 4, passes=3)(x, h, key=KEY)
    np.testing.assert_allclose(seen, np.ones(12), rtol=1e-12)
    assert reference.relative_error(found.to_dense(), h) < 1e-12
