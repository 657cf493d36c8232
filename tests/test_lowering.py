"""What the public functions compile to: no factorization of anything tall, every platform."""

from collections import Counter

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank_jax as lrj

N, DIM = 5, 40
KRYLOV = 16  # rows of the Lanczos basis of `singular_triplet` and `top_eigenpair`
ROWS = jax.ShapeDtypeStruct((N, DIM), np.float32)
ROW = jax.ShapeDtypeStruct((DIM,), np.float32)
PAIRS = lrj.SecantPairs(ROWS, ROWS)
OPERATOR = lrj.SymmetricLowRank(ROWS, jax.ShapeDtypeStruct((N, N), np.float32))
MATRIX = jax.ShapeDtypeStruct((30, DIM), np.float32)
RECTANGULAR = lrj.LowRank(
    jax.ShapeDtypeStruct((N, 30), np.float32),
    jax.ShapeDtypeStruct((N, 4), np.float32),
    jax.ShapeDtypeStruct((4, DIM), np.float32),
)
SCALAR = jax.ShapeDtypeStruct((), np.float32)
MANY = jax.ShapeDtypeStruct((300, 3), np.float32)
MODEL = lrj.QuadraticModel(ROW, SCALAR, ROW, OPERATOR)


def loss(x):
    return jnp.sum(jnp.cos(x) * jnp.roll(x, 1))


def at_point(transform, *args, **options):
    """The function of a point that a transform of the loss gives, with a key."""
    return lambda x: transform(loss, *args, **options)(x, key=jax.random.key(0))


def pairs_of_trajectory(points):
    past = lrj.history.init(points[0], N - 1)
    past, _ = jax.lax.scan(lambda past, x: (lrj.history.push(past, x, x), None), past, points)
    return lrj.history.pairs(past)


def first_update(opt):
    return lambda grad, x: opt.update(grad, opt.init(x), x)[0]


def second(function):
    """A derivative of the gradient, forward over reverse."""

    def along(*args):
        return jax.jvp(jax.grad(function, argnums=tuple(range(len(args)))), args, args)[1]

    return along


PUBLIC = {
    "fit": (lrj.fit, PAIRS),
    "fit traced": (lambda p, e, r: lrj.fit(p, extrapolate=e, rtol=r), PAIRS, SCALAR, SCALAR),
    "fit least norm": (lambda p: lrj.fit(p, extrapolate=0), PAIRS),
    "gradient of fit": (jax.grad(lambda p: lrj.fit(p).trace()), PAIRS),
    "second derivatives of fit": (second(lambda p: lrj.fit(p).trace()), PAIRS),
    "second derivatives of a batch of fits": (
        second(lambda p: jnp.sum(jax.vmap(lambda p: lrj.fit(p).trace())(p))),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), PAIRS),
    ),
    "more pairs than dimensions": (lambda s: lrj.fit((s, s)), MANY),
    "centered": (lrj.centered, ROWS, ROWS),
    "from_first": (lrj.from_first, ROWS, ROWS),
    "successive": (lrj.successive, ROWS, ROWS),
    "anchored": (lrj.anchored, ROWS, ROWS, ROW, ROW),
    "concatenate": (lrj.concatenate, PAIRS, PAIRS),
    "secant_pairs": (lrj.secant_pairs(loss, batch_size=2), ROWS),
    "secant_hessian": (lrj.secant_hessian(loss), ROWS),
    "batch": (jax.vmap(lrj.secant_hessian(loss)), jax.ShapeDtypeStruct((3, N, DIM), np.float32)),
    "diagnose": (lrj.diagnose, OPERATOR, PAIRS),
    "compare_hvp": (lambda h, x, v: lrj.compare_hvp(loss, h, x, v), OPERATOR, ROW, ROWS),
    "hvp": (lrj.hvp(loss), ROW, ROW),
    "gradient_difference": (lrj.gradient_difference(loss, central=True), ROW, ROW),
    "second_derivative": (lrj.second_derivative(loss), ROW, ROW, ROW),
    "mv": (lambda h, v: h @ v, OPERATOR, ROW),
    "bilinear": (lambda h, u, v: h.bilinear(u, v), OPERATOR, ROW, ROW),
    "eigh": (lambda h: h.eigh(), OPERATOR),
    "eigenvalues": (lambda h: h.eigenvalues(), OPERATOR),
    "trace": (lambda h: h.trace(), OPERATOR),
    "frobenius_norm": (lambda h: h.frobenius_norm(), OPERATOR),
    "truncate": (lambda h: h.truncate(2), OPERATOR),
    "inertia": (lambda h: h.inertia(), OPERATOR),
    "diagonal": (lambda h: h.diagonal(), OPERATOR),
    "solve": (lambda h, v, d: h.solve(v, d), OPERATOR, ROW, SCALAR),
    "logdet": (lambda h, d: h.logdet(d), OPERATOR, SCALAR),
    "second derivatives of solve": (
        second(lambda h, v: jnp.sum(h.solve(v, 1.0))),
        OPERATOR,
        ROW,
    ),
    "second derivatives of a truncation": (second(lambda h: h.truncate(2).trace()), OPERATOR),
    "mapped and solved": (lambda h, v: h.map_spectrum(jax.nn.relu).solve(v, 1.0), OPERATOR, ROW),
    "gradient of logdet": (jax.grad(lambda h, d: h.logdet(d)), OPERATOR, SCALAR),
    "map_spectrum": (lambda h: h.map_spectrum(jnp.abs), OPERATOR),
    "positive_part": (lambda h: h.positive_part(), OPERATOR),
    "diagonal plus low rank": (lambda h, d, v: h.plus_diagonal(d) @ v, OPERATOR, ROW, ROW),
    "solve with a vector": (lambda h, v, d: h.solve(v, d), OPERATOR, ROW, ROW),
    "logdet with a vector": (lambda h, d: h.logdet(d), OPERATOR, ROW),
    "inverse": (lambda h, d: h.inverse(d), OPERATOR, ROW),
    "gradient of the inverse": (
        jax.grad(lambda h, d: h.inverse(d).trace(), argnums=(0, 1)),
        OPERATOR,
        ROW,
    ),
    "sample with a vector": (lambda h, d: h.sample(jax.random.key(0), d, (3,)), OPERATOR, ROW),
    "sample": (lambda h, d: h.sample(jax.random.key(0), d, (3,)), OPERATOR, SCALAR),
    "choose_extrapolation": (lrj.choose_extrapolation, PAIRS),
    "choose_rtol": (lrj.choose_rtol, PAIRS),
    "choose_shift": (lrj.choose_shift, PAIRS),
    "fit with a base": (lambda p, h: lrj.fit(p, base=h), PAIRS, OPERATOR),
    "fit with weights": (
        lambda p, w: lrj.fit(p, weights=w),
        PAIRS,
        jax.ShapeDtypeStruct((N,), np.float32),
    ),
    "quadratic_model": (lrj.quadratic_model(loss), ROWS),
    "predict": (lambda m, v: m.predict(v), MODEL, ROW),
    "newton_step": (lambda m: m.newton_step(1.0), MODEL),
    "cauchy_step": (lambda m: m.cauchy_step(), MODEL),
    "trust_region_step": (lambda m, r: m.trust_region_step(r), MODEL, SCALAR),
    "gradient of trust_region_step": (
        jax.grad(lambda m, r: jnp.sum(m.trust_region_step(r))),
        MODEL,
        SCALAR,
    ),
    "probe_pairs": (at_point(lambda f: lrj.probe_pairs(lrj.hvp(f), 2)), ROW),
    "lowrank_hessian": (at_point(lrj.lowrank_hessian, 2, batch_size=1), ROW),
    "gradient of lowrank_hessian": (
        jax.grad(lambda x: at_point(lrj.lowrank_hessian, 2)(x).trace()),
        ROW,
    ),
    "lowrank_hessian_from_gradient": (
        at_point(lambda f: lrj.lowrank_hessian_from_gradient(jax.grad(f), 2)),
        ROW,
    ),
    "quadratic_model_at": (at_point(lrj.quadratic_model_at, 2), ROW),
    "gauss_newton_product": (
        lambda x, v, a: lrj.gauss_newton_product(
            lambda x, a: jnp.sin(x), lambda z, t: jnp.sum(jnp.cosh(z - t))
        )(x, v, a, x),
        ROW,
        ROW,
        ROWS,
    ),
    "lowrank_jacobian": (
        at_point(lambda f: lrj.lowrank_jacobian(lambda x: (jnp.sin(x[1:]) * x[:-1], f(x)), 2)),
        ROW,
    ),
    "rectangular mv": (lambda a, v: a @ v, RECTANGULAR, ROW),
    "svd": (lambda a: a.svd(), RECTANGULAR),
    "rectangular truncate": (lambda a: a.truncate(2), RECTANGULAR),
    "rectangular algebra": (lambda a: ((2 * a - a / 3) @ a.T).frobenius_norm(), RECTANGULAR),
    "skeleton": (lambda a: lrj.skeleton(a, [1, 2], [0, 3, 5]), MATRIX),
    "cross": (lambda a: lrj.cross(a, 3), MATRIX),
    "cross of functions": (lambda x: lrj.cross((lambda i: x[i] * x, lambda j: x[j] * x), 3), ROW),
    "singular_triplet": (lrj.singular_triplet, MATRIX),
    "gradient of singular_triplet": (
        jax.grad(lambda a: jnp.sum(lrj.singular_triplet(a)[1])),
        RECTANGULAR,
    ),
    "top_eigenpair": (at_point(lrj.top_eigenpair), ROW),
    "gradient of top_eigenpair": (jax.grad(lambda x: at_point(lrj.top_eigenpair)(x)[0]), ROW),
    "eigenpairs of a fit": (lambda p: lrj.fit(p).eigh(), PAIRS),
    "history": (pairs_of_trajectory, ROWS),
    "scale_by_secant": (first_update(lrj.optim.scale_by_secant(N)), ROW, ROW),
    "secant_newton": (first_update(lrj.optim.secant_newton(0.1, damping=0.1)), ROW, ROW),
    "precondition_top_curvature": (
        first_update(
            lrj.optim.precondition_top_curvature(
                optax.sgd(0.1), loss, probes=2, key=jax.random.key(0)
            )
        ),
        ROW,
        ROW,
    ),
    "algebra": (lambda h: (2 * h - h / 3 + -h) @ jnp.ones(DIM, np.float32), OPERATOR),
}


def equations(jaxpr):
    """All equations, also those inside calls, loops, branches and derivative rules."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)


def inner_jaxprs(equation):
    values = jax.tree.leaves(
        list(equation.params.values()),
        is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
    )
    found = [getattr(value, "jaxpr", value) for value in values]
    return [inner for inner in found if hasattr(inner, "eqns")]


FACTORIZATIONS = (
    "qr",
    "geqrf",
    "svd",
    "lu",
    "schur",
    "eigh",
    "cholesky",
    "triangular_solve",
    "householder",
)


def is_factorization(equation):
    return equation.primitive.name.startswith(FACTORIZATIONS)


def factorizations(jaxpr):
    """The factorizations in a jaxpr and the longest axis that each of them sees."""
    found = Counter()
    for equation in filter(is_factorization, equations(jaxpr)):
        longest = max(max(v.aval.shape, default=0) for v in equation.invars)
        found[equation.primitive.name] = max(found[equation.primitive.name], longest)
    return found


def independent_factorizations(jaxpr):
    """Pairs of factorizations of which neither waits for the other's result.

    Several in a batch at once can deadlock a small CPU's thread pool in JAX 0.10: each
    blocks a thread and waits for the threads that the others block.
    """
    seen, independent = [], []

    def walk(jaxpr, inputs):
        depends = dict(zip(jaxpr.invars, inputs, strict=True))

        def of(variables):  # what constants wait for: nothing
            return [
                frozenset() if hasattr(v, "val") else depends.get(v, frozenset()) for v in variables
            ]

        for equation in jaxpr.eqns:
            inputs = of(equation.invars)
            everything = frozenset().union(*inputs)
            outputs = [everything] * len(equation.outvars)
            for inner in inner_jaxprs(equation):
                one_to_one = len(inner.invars) == len(inputs)
                results = walk(inner, inputs if one_to_one else [everything] * len(inner.invars))
                if one_to_one and len(results) == len(outputs):
                    outputs = results
                else:  # several are the branches of one conditional
                    everything = everything.union(*results)
                    outputs = [everything] * len(outputs)
            if is_factorization(equation):
                name = f"{equation.primitive.name} {len(seen)}"
                independent.extend((name, other) for other in seen if other not in everything)
                seen.append(name)
                outputs = [everything | {name}] * len(outputs)
            depends.update(zip(equation.outvars, outputs, strict=True))
        return of(jaxpr.outvars)

    walk(jaxpr, [frozenset()] * len(jaxpr.invars))
    return independent


def test_no_kernel_compares_indices_of_a_matrix_anew():
    """The diagonal of an identity: compared once, and read from memory by all that need it."""
    jaxpr = jax.make_jaxpr(lrj.fit)(PAIRS).jaxpr
    kept = [e for e in equations(jaxpr) if e.primitive.name == "optimization_barrier"]
    compared = [
        equation
        for equation in equations(jaxpr)
        if equation.primitive.name == "eq" and equation.outvars[0].aval.shape == (N, N)
    ]
    assert len(kept) == len(compared) > 0


def test_the_walker_finds_a_planted_qr():
    @jax.custom_jvp
    def planted(x):
        return jnp.linalg.qr(x)[1]

    planted.defjvp(lambda x, t: (planted(*x), planted(*t)))

    def body(c, _):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 0, jax.jit(planted), c), None

    jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(body, x, length=2))(np.eye(DIM)).jaxpr
    assert max(factorizations(jaxpr).values()) == DIM


@pytest.mark.parametrize("name", PUBLIC)
def test_small_matrices_alone_are_factorized_in_a_chain_at_highest_precision(name):
    """No square of the long axis is formed, and products run at the highest precision."""
    function, *args = PUBLIC[name]
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    found = factorizations(jaxpr)
    assert max(found.values(), default=0) <= max(2 * N, KRYLOV)
    assert not {"qr", "geqrf", "householder_product"} & set(found)
    assert not independent_factorizations(jaxpr)
    highest = jax.lax.Precision.HIGHEST
    for equation in equations(jaxpr):
        for variable in equation.outvars:
            assert list(variable.aval.shape).count(DIM) < 2, equation
        if equation.primitive.name == "dot_general":
            assert equation.params["precision"] == (highest, highest), equation


def test_the_walker_finds_independent_factorizations():
    @jax.jit
    def chained(x):
        return jnp.linalg.cholesky(jnp.linalg.eigh(x)[1])

    def side_by_side(x):
        return jnp.linalg.eigvalsh(x), jax.jit(jnp.linalg.cholesky)(x)

    def found(function):
        return independent_factorizations(jax.make_jaxpr(function)(np.eye(3)).jaxpr)

    assert not found(chained)
    assert len(found(side_by_side)) == 1


@pytest.mark.parametrize("name", [*PUBLIC, "to_dense"])
def test_lowers_for_accelerators(name):
    function, *args = PUBLIC.get(name, (lambda h: h.to_dense(), OPERATOR))

    def leaves_only(*args):
        return jax.tree.leaves(function(*args))

    flat, tree = jax.tree.flatten(args)
    exported = jax.export.export(
        jax.jit(lambda *leaves: leaves_only(*jax.tree.unflatten(tree, leaves))),
        platforms=["tpu", "cuda"],
    )(*flat)
    assert exported.platforms == ("tpu", "cuda")
