"""Wrong input: the type of the error, and a message with argument, expectation and value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank_jax as lrj

ONES = np.ones((3, 4))
ROW = np.ones(4)
KEY = jax.random.key(0)
PAIRS = lrj.SecantPairs(ONES, ONES)


def square(x):
    return jnp.sum(x**2)


def operator():
    return lrj.SymmetricLowRank({"a": ONES}, np.eye(3))


def rectangular():
    return lrj.LowRank(ONES[:, :2], np.eye(3), ONES)


def top_curvature(**options):
    options = {"probes": 1, "key": KEY, **options}
    return lrj.optim.precondition_top_curvature(optax.sgd(0.1), square, **options)


CASES = {
    "points and gradients of different structure": (
        lambda: lrj.centered({"a": ONES}, ONES),
        ValueError,
        r"grads must have the tree structure of points",
    ),
    "points and gradients of different number": (
        lambda: lrj.from_first(ONES, ONES[:2]),
        ValueError,
        r"grads must have the shape that points gives, \(3, 4\), got \(2, 4\)",
    ),
    "leading axes that differ": (
        lambda: lrj.successive({"a": ONES, "b": ONES[:2]}, {"a": ONES, "b": ONES[:2]}),
        ValueError,
        r"points\['b'\] must have the leading axis of points\['a'\], 3, got shape \(2, 4\)",
    ),
    "no points": (
        lambda: lrj.centered(ONES[:0], ONES[:0]),
        ValueError,
        "points must hold at least one point, got a leading axis of 0",
    ),
    "no arrays": (lambda: lrj.centered({}, {}), ValueError, "points must hold at least one array"),
    "a scalar for points": (
        lambda: lrj.secant_hessian(square)(1.0),
        ValueError,
        "points must have a leading axis of points, got a scalar",
    ),
    "integer points": (
        lambda: lrj.secant_hessian(square)({"w": np.ones((3, 4), int)}),
        TypeError,
        r"points\['w'\] must be a real floating-point array, got dtype int",
    ),
    "complex points": (lambda: lrj.centered(ONES + 0j, ONES), TypeError, r"points .* complex128"),
    "boolean gradients": (lambda: lrj.centered(ONES, ONES > 0), TypeError, r"grads .* bool"),
    "random keys as points": (
        lambda: lrj.centered(jax.random.split(jax.random.key(0), 3), ONES),
        TypeError,
        r"points .* key<fry>",
    ),
    "text as points": (
        lambda: lrj.centered("abc", ONES),
        TypeError,
        "points must be an array, got str",
    ),
    "an anchor that does not fit": (
        lambda: lrj.anchored(ONES, ONES, ROW[:2], ROW),
        ValueError,
        r"anchor must have the shape that one of points gives, \(4,\), got \(2,\)",
    ),
    "sets of pairs that do not fit": (
        lambda: lrj.concatenate(PAIRS, lrj.SecantPairs(ONES[:, :2], ONES[:, :2])),
        ValueError,
        r"each set's steps must have the shape that the first set gives, \(3, 4\), got \(3, 2\)",
    ),
    "no sets of pairs": (
        lambda: lrj.concatenate(),
        ValueError,
        "at least one set of pairs, got none",
    ),
    "a loss that is not scalar": (
        lambda: lrj.secant_hessian(lambda x: x**2)(ONES),
        ValueError,
        r"loss must return a scalar, got shape \(4,\)",
    ),
    "a loss that is an integer": (
        lambda: lrj.hvp(lambda x: 3)(ROW, ROW),
        TypeError,
        "loss must return a real float, got dtype int",
    ),
    "a loss without its aux": (
        lambda: lrj.secant_hessian(square, has_aux=True)(ONES),
        TypeError,
        r"loss must return a pair \(value, aux\) with has_aux=True",
    ),
    "argnums out of range": (
        lambda: lrj.secant_hessian(square, 1)(ONES),
        ValueError,
        "argnums must name some of the loss's 1 arguments, got 1",
    ),
    "argnums a text": (
        lambda: lrj.hvp(square, "x")(ROW, ROW),
        TypeError,
        "argnums must be an int or a sequence of ints, got 'x'",
    ),
    "argnums twice": (
        lambda: lrj.secant_hessian(square, (0, 0))(ONES),
        ValueError,
        r"argnums must name each argument once, got \(0, 0\)",
    ),
    "extrapolate above 1": (
        lambda: lrj.secant_hessian(square, extrapolate=1.5),
        ValueError,
        r"extrapolate must be in \[0, 1\], got 1.5",
    ),
    "extrapolate not a number": (
        lambda: lrj.fit(PAIRS, extrapolate=np.nan),
        ValueError,
        r"extrapolate must be in \[0, 1\], got nan",
    ),
    "extrapolate a vector": (
        lambda: lrj.fit(PAIRS, extrapolate=ROW),
        ValueError,
        r"extrapolate must be a scalar, got shape \(4,\)",
    ),
    "extrapolate a text": (
        lambda: lrj.fit(PAIRS, extrapolate="most"),
        TypeError,
        "extrapolate must be",
    ),
    "a negative rtol": (
        lambda: lrj.fit(PAIRS, rtol=-1),
        ValueError,
        r"rtol must be in \[0, 1\], got -1",
    ),
    "a batch size of 0": (
        lambda: lrj.secant_pairs(square, batch_size=0),
        ValueError,
        "batch_size must be at least 1, got 0",
    ),
    "a batch size of 1.5": (
        lambda: lrj.secant_pairs(square, batch_size=1.5),
        TypeError,
        "batch_size must be a Python int, got 1.5",
    ),
    "pairs that are none": (
        lambda: lrj.fit((ONES, ONES)),
        TypeError,
        "pairs must be SecantPairs, got tuple",
    ),
    "pairs of different shape": (
        lambda: lrj.fit(lrj.SecantPairs(ONES, ONES[:2])),
        ValueError,
        r"pairs.grad_diffs must have the shape that pairs.steps gives, \(3, 4\), got \(2, 4\)",
    ),
    "rounding of another length": (
        lambda: lrj.fit(PAIRS._replace(rounding=ROW)),
        ValueError,
        r"pairs.rounding must have shape \(3,\), got \(4,\)",
    ),
    "a vector of another structure": (
        lambda: operator() @ ROW,
        ValueError,
        "v must have the tree structure of a factor of the operator",
    ),
    "a stack of vectors": (
        lambda: operator() @ {"a": ONES},
        ValueError,
        r"v\['a'\] .* \(4,\), got \(3, 4\); for a stack of vectors use jax.vmap\(H.mv\)",
    ),
    "an integer vector": (
        lambda: operator().bilinear({"a": ROW}, {"a": np.ones(4, int)}),
        TypeError,
        r"v\['a'\] must be a real floating-point array, got dtype int",
    ),
    "a batch of operators without vmap": (
        lambda: jax.vmap(lrj.SymmetricLowRank)(ONES[None], np.eye(3)[None]).trace(),
        ValueError,
        r"this is a batch of operators, core of shape \(1, 3, 3\): use it under jax.vmap",
    ),
    "operators of different structure": (
        lambda: operator() + lrj.SymmetricLowRank(ONES, np.eye(3)),
        ValueError,
        "the other operator's factors must have the tree structure of this operator",
    ),
    "operators of different size": (
        lambda: operator() - lrj.SymmetricLowRank({"a": ONES[:, :2]}, np.eye(3)),
        ValueError,
        r"the other operator's factors\['a'\] .* \(3, 4\), got \(3, 2\)",
    ),
    "an operator plus a matrix": (
        lambda: operator() + jnp.eye(4),
        TypeError,
        "unsupported operand",
    ),
    "an operator times a vector": (
        lambda: operator() * ROW,
        ValueError,
        r"the factor of an operator must be a scalar, got shape \(4,\)",
    ),
    "an operator times a complex number": (
        lambda: 1j * operator(),
        TypeError,
        "the factor of an operator must be a real number, got dtype complex",
    ),
    "a damping of 0": (
        lambda: operator().solve({"a": ROW}, 0),
        ValueError,
        "damping must be positive, got 0",
    ),
    "a negative damping": (
        lambda: operator().logdet(jnp.float32(-1)),
        ValueError,
        r"damping must be positive, got -1.0",
    ),
    "no damping": (
        lambda: operator().sample(jax.random.key(0), None),
        TypeError,
        "damping must be a real number, got NoneType",
    ),
    "a number of draws that is none": (
        lambda: operator().sample(jax.random.key(0), 1.0, (2.0,)),
        TypeError,
        "shape must be a Python int, got 2.0",
    ),
    "a number of draws without a shape": (
        lambda: operator().sample(jax.random.key(0), 1.0, 3),
        TypeError,
        "shape must be a sequence of Python ints, got 3",
    ),
    "a function of the eigenvalues that does not vanish at 0": (
        lambda: operator().map_spectrum(jnp.exp),
        ValueError,
        "f must be 0 at 0, got 1.0",
    ),
    "a function of the eigenvalues that reduces them": (
        lambda: operator().map_spectrum(jnp.sum),
        ValueError,
        r"f must map an array of eigenvalues of shape \(1,\) to the same shape, got \(\)",
    ),
    "a right side of another structure": (
        lambda: operator().solve(ROW, 1.0),
        ValueError,
        "v must have the tree structure of a factor of the operator",
    ),
    "a diagnosis with extrapolate above 1": (
        lambda: lrj.diagnose(lrj.fit(PAIRS), PAIRS, extrapolate=1.5),
        ValueError,
        r"extrapolate must be in \[0, 1\], got 1.5",
    ),
    "a choice without pairs": (
        lambda: lrj.choose_extrapolation(ONES),
        TypeError,
        "pairs must be SecantPairs, got",
    ),
    "a radius of 0": (
        lambda: lrj.quadratic_model(square)(ONES).trust_region_step(0.0),
        ValueError,
        "radius must be positive, got 0.0",
    ),
    "a step of another shape": (
        lambda: lrj.quadratic_model(square)(ONES).predict(np.ones(3)),
        ValueError,
        r"step must have the shape that the gradient gives, \(4,\), got \(3,\)",
    ),
    "a negative rank": (
        lambda: operator().truncate(-1),
        ValueError,
        "rank must be at least 0, got -1",
    ),
    "a rank of 2.0": (
        lambda: operator().truncate(2.0),
        TypeError,
        "rank must be a Python int, got 2.0",
    ),
    "a direction that does not fit": (
        lambda: lrj.hvp(square)(ROW, ROW[:2]),
        ValueError,
        r"v must have the shape that x gives, \(4,\), got \(2,\)",
    ),
    "a step of 0": (
        lambda: lrj.gradient_difference(square, step=0.0),
        ValueError,
        "step must be positive, got 0.0",
    ),
    "a form of directions that do not fit": (
        lambda: lrj.second_derivative(square)(ROW, ROW, ROW[:2]),
        ValueError,
        r"k must have the shape that x gives, \(4,\), got \(2,\)",
    ),
    "no probes": (lambda: lrj.lowrank_hessian(square, 0), ValueError, "probes must be at least 1"),
    "probes of 2.0": (
        lambda: lrj.lowrank_from_product(lrj.hvp(square), 2.0),
        TypeError,
        "probes must be a Python int, got 2.0",
    ),
    "no passes": (
        lambda: lrj.lowrank_hessian_on_host(square, 1, passes=0),
        ValueError,
        "passes must be at least 1, got 0",
    ),
    "no batch": (
        lambda: lrj.lowrank_hessian(square, 1, batch_size=0),
        ValueError,
        "batch_size must be at least 1, got 0",
    ),
    "a step below 0": (
        lambda: lrj.lowrank_hessian_from_gradient(square, 1, step=-1.0),
        ValueError,
        "step must be positive, got -1.0",
    ),
    "a start of another number": (
        lambda: lrj.lowrank_hessian(square, 2, start=ONES)(ROW, key=KEY),
        ValueError,
        "start must have a leading axis of probes, 2, got 3",
    ),
    "a start of another shape": (
        lambda: lrj.lowrank_hessian(square, 3, start=ONES[:, :2])(ROW, key=KEY),
        ValueError,
        r"start must have the shape that x gives, \(3, 4\), got \(3, 2\)",
    ),
    "a key of 0": (
        lambda: lrj.lowrank_hessian(square, 1)(ROW, key=0),
        TypeError,
        r"key must be a random key, such as jax.random.key\(0\), got 0",
    ),
    "several keys": (
        lambda: lrj.top_eigenpair(square)(ROW, key=jax.random.split(KEY)),
        ValueError,
        r"key must be one random key, got an array of shape \(2,\)",
    ),
    "curvature at nothing": (
        lambda: lrj.lowrank_from_product(lambda x, v: v, 2)({}, key=KEY),
        ValueError,
        "x must hold at least one array",
    ),
    "curvature at integers": (
        lambda: lrj.lowrank_hessian(square, 1)(np.ones(4, int), key=KEY),
        TypeError,
        "x must be a real floating-point array, got dtype int",
    ),
    "a gradient that does not fit": (
        lambda: lrj.lowrank_hessian_from_gradient(lambda x: x[:2], 1)(ROW, key=KEY),
        ValueError,
        r"grad_fn\(x\) must have the shape that x gives, \(4,\), got \(2,\)",
    ),
    "a gradient on the host of whole numbers": (
        lambda: lrj.lowrank_hessian_on_host(lambda x: np.ones(4, int), 1)(ROW, key=KEY),
        TypeError,
        r"grad_fn\(x\) must be a real floating-point array, got dtype int",
    ),
    "the host under jit": (
        lambda: jax.jit(lambda: lrj.lowrank_hessian_on_host(lambda x: x, 1)(ROW, key=KEY))(),
        TypeError,
        "cannot be traced by jit, vmap or grad, .* lowrank_hessian_from_gradient",
    ),
    "a product that does not fit": (
        lambda: lrj.probe_pairs(lambda x, v: v[:2], 1)(ROW, key=KEY),
        ValueError,
        r"product\(x, v\) must have the shape that x gives, \(4,\), got \(2,\)",
    ),
    "a Gauss-Newton direction that does not fit": (
        lambda: lrj.gauss_newton_product(lambda x, z: x, lambda z, t: jnp.sum(z))(
            ROW, ROW[:2], None, None
        ),
        ValueError,
        r"v must have the shape that x gives, \(4,\), got \(2,\)",
    ),
    "a Gauss-Newton model of whole numbers": (
        lambda: lrj.gauss_newton_product(lambda x, z: (x, jnp.arange(3)), lambda z, t: z[0][0])(
            ROW, ROW, None, None
        ),
        TypeError,
        r"model\(x, inputs\)\[1\] must be a real floating-point array, got dtype int",
    ),
    "a Gauss-Newton loss that is not scalar": (
        lambda: lrj.gauss_newton_product(lambda x, z: x, lambda z, t: z)(ROW, ROW, None, None),
        ValueError,
        r"loss must return a scalar, got shape \(4,\)",
    ),
    "a function without like": (
        lambda: lrj.singular_triplet(lambda v: v),
        TypeError,
        "like must be a vector of the input space where a is a function",
    ),
    "like with a matrix": (
        lambda: lrj.singular_triplet(ONES, like=ROW),
        TypeError,
        "like goes with a function a alone, got a ndarray",
    ),
    "a vector for a matrix": (
        lambda: lrj.singular_triplet(ROW),
        ValueError,
        r"a must be a matrix with entries, got shape \(4,\)",
    ),
    "a matrix without entries": (
        lambda: lrj.singular_triplet(ONES[:0]),
        ValueError,
        r"a must be a matrix with entries, got shape \(0, 4\)",
    ),
    "a complex matrix": (lambda: lrj.singular_triplet(ONES + 0j), TypeError, "a .* complex128"),
    "the triplet of a symmetric operator": (
        lambda: lrj.singular_triplet(lrj.fit(PAIRS)),
        TypeError,
        "a must be a matrix, a LowRank or a function, got a SymmetricLowRank",
    ),
    "the triplet of a product that is no vector": (
        lambda: lrj.singular_triplet(lambda v: 1, like=ROW),
        TypeError,
        r"a\(v\) must be a real floating-point array, got dtype int",
    ),
    "a like without entries": (
        lambda: lrj.singular_triplet(lambda v: v, like={}),
        ValueError,
        "like must have at least one entry, got {}",
    ),
    "the top eigenpair of a loss that is not scalar": (
        lambda: lrj.top_eigenpair(lambda x: x)(ROW, key=KEY),
        ValueError,
        r"loss must return a scalar, got shape \(4,\)",
    ),
    "the top eigenpair at no entries": (
        lambda: lrj.top_eigenpair(square)(ROW[:0], key=KEY),
        ValueError,
        r"x must have at least one entry, got \(0,\)",
    ),
    "a stack for one vector of LowRank": (
        lambda: rectangular() @ ONES,
        ValueError,
        r"v must .* a right row of the operator .*use jax.vmap\(A.mv\)",
    ),
    "whole numbers for a vector of LowRank": (
        lambda: rectangular() @ np.ones(4, int),
        TypeError,
        "v must be a real floating-point array, got dtype int",
    ),
    "a LowRank of rank 2.0": (
        lambda: rectangular().truncate(2.0),
        TypeError,
        "rank must be a Python int, got 2.0",
    ),
    "a LowRank of rank -1": (
        lambda: rectangular().truncate(-1),
        ValueError,
        "rank must be at least 0, got -1",
    ),
    "a row out of range": (
        lambda: lrj.skeleton(ONES, [0, 3], [0]),
        ValueError,
        r"rows must be in \[0, 3\), got 3",
    ),
    "a negative column": (
        lambda: lrj.skeleton(ONES, [0], [-1]),
        ValueError,
        r"cols must be in \[0, 4\), got -1",
    ),
    "indices that are not integers": (
        lambda: lrj.skeleton(ONES, [0.0], [0]),
        TypeError,
        "rows must be integers, got dtype",
    ),
    "a single index": (
        lambda: lrj.skeleton(ONES, 0, [0]),
        ValueError,
        "rows must have one axis",
    ),
    "an rtol of 2": (
        lambda: lrj.skeleton(ONES, [0], [0], rtol=2),
        ValueError,
        r"rtol must be in \[0, 1\], got 2",
    ),
    "the cross of a tree": (
        lambda: lrj.cross({"a": ONES}, 2),
        TypeError,
        "a must be a matrix or two functions",
    ),
    "one function for two": (
        lambda: lrj.cross((len,), 2),
        TypeError,
        "a must be a matrix or two functions",
    ),
    "the cross of a vector": (
        lambda: lrj.cross(ROW, 2),
        ValueError,
        r"a must be a matrix .* got shape \(4,\)",
    ),
    "the cross of whole numbers": (
        lambda: lrj.cross(ONES.astype(int), 2),
        TypeError,
        "a must be a real floating-point array, got dtype int",
    ),
    "a row of whole numbers": (
        lambda: lrj.cross((lambda i: jnp.ones(4, int), lambda j: jnp.ones(3)), 2),
        TypeError,
        "row must return a real floating-point array",
    ),
    "a row of two axes": (
        lambda: lrj.cross((lambda i: jnp.ones((3, 4)), lambda j: jnp.ones(3)), 2),
        ValueError,
        r"row must return an array of one axis, got shape \(3, 4\)",
    ),
    "a negative rank of a cross": (
        lambda: lrj.cross(ONES, -1),
        ValueError,
        "rank must be at least 0, got -1",
    ),
    "no probes of a Jacobian": (
        lambda: lrj.lowrank_jacobian(jnp.sin, 0),
        ValueError,
        "probes must be at least 1, got 0",
    ),
    "probes of a Jacobian of 2.0": (
        lambda: lrj.lowrank_jacobian(jnp.sin, 2.0),
        TypeError,
        "probes must be a Python int, got 2.0",
    ),
    "an integer function": (
        lambda: lrj.lowrank_jacobian(lambda x: (x, jnp.argmax(x)), 2)(ROW, key=KEY),
        TypeError,
        r"f\(x\)\[1\] must be a real floating-point array",
    ),
    "a function of no value": (
        lambda: lrj.lowrank_jacobian(lambda x: (), 2)(ROW, key=KEY),
        ValueError,
        r"f\(x\) must hold at least one array",
    ),
    "a Jacobian at integers": (
        lambda: lrj.lowrank_jacobian(jnp.sin, 2)(np.ones(3, int), key=KEY),
        TypeError,
        "x must be a real floating-point array, got dtype int",
    ),
    "a diagnosis of something else": (
        lambda: lrj.diagnose(np.eye(4), PAIRS),
        TypeError,
        "hessian must be a SymmetricLowRank, got ndarray",
    ),
    "a diagnosis of other pairs": (
        lambda: lrj.diagnose(operator(), PAIRS),
        ValueError,
        "pairs.steps must have the tree structure",
    ),
    "a comparison of vectors that do not fit": (
        lambda: lrj.compare_hvp(square, lrj.fit(PAIRS), ROW, ONES[:, :2]),
        ValueError,
        r"vectors must have the shape that x gives",
    ),
    "a history of nothing": (
        lambda: lrj.history.init({}, 2),
        ValueError,
        "params must hold at least one array",
    ),
    "a history of no pairs": (
        lambda: lrj.history.init(ROW, 0),
        ValueError,
        "size must be at least 1, got 0",
    ),
    "a point that does not fit the history": (
        lambda: lrj.history.push(lrj.history.init(ROW, 2), ROW[:2], ROW),
        ValueError,
        r"params must have the shape that the history gives, \(4,\), got \(2,\)",
    ),
    "a gradient of another structure than the history's": (
        lambda: lrj.history.push(lrj.history.init(ROW, 2), ROW, {"a": ROW}),
        ValueError,
        "grads must have the tree structure of the history",
    ),
    "a gradient of whole numbers": (
        lambda: lrj.history.push(lrj.history.init(ROW, 2), ROW, np.ones(4, int)),
        TypeError,
        "grads must be a real floating-point array, got dtype int",
    ),
    "the pairs of no history": (
        lambda: lrj.history.pairs(PAIRS),
        TypeError,
        "history must be a History, got SecantPairs",
    ),
    "an optimiser with a size of 2.0": (
        lambda: lrj.optim.secant_newton(size=2.0),
        TypeError,
        "size must be a Python int, got 2.0",
    ),
    "an optimiser with a damping of 0": (
        lambda: lrj.optim.scale_by_secant(2, damping=0.0),
        ValueError,
        "damping must be positive, got 0.0",
    ),
    "an update without parameters": (
        lambda: lrj.optim.secant_newton(0.1).update(ROW, lrj.optim.secant_newton(0.1).init(ROW)),
        ValueError,
        r"scale_by_secant needs the parameters, update\(grads, state, params\), got None",
    ),
    "a preconditioned update without parameters": (
        lambda: top_curvature().update(ROW, top_curvature().init(ROW)),
        ValueError,
        "precondition_top_curvature needs the parameters",
    ),
    "no probes of the top curvature": (
        lambda: top_curvature(probes=0),
        ValueError,
        "probes must be at least 1, got 0",
    ),
    "no passes of the top curvature": (
        lambda: top_curvature(passes=0),
        ValueError,
        "passes must be at least 1, got 0",
    ),
    "curvature measured every 0 updates": (
        lambda: top_curvature(every=0),
        ValueError,
        "every must be at least 1, got 0",
    ),
    "the top curvature with a key of 0": (
        lambda: top_curvature(key=0),
        TypeError,
        "key must be a random key",
    ),
    "a learning rate of 0 along the top curvature": (
        lambda: top_curvature(learning_rate=0),
        ValueError,
        "learning_rate must be positive, got 0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_an_error_that_says_what_is_wrong(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_errors_come_at_trace_time():
    with pytest.raises(ValueError, match="loss must return a scalar"):
        jax.jit(lrj.secant_hessian(lambda x: x)).lower(jax.ShapeDtypeStruct((3, 4), np.float32))
