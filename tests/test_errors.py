"""Wrong input: the type of the error, and a message with argument, expectation and value."""

import inspect

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
OPERATOR = lrj.SymmetricLowRank(ONES, np.eye(3))


def square(x):
    return jnp.sum(x**2)


def model(**parts):
    return lrj.QuadraticModel(
        **{"center": ROW, "value": 1.0, "grad": ROW, "hessian": OPERATOR, **parts}
    )


def operator():
    return lrj.SymmetricLowRank({"a": ONES}, np.eye(3))


def rectangular():
    return lrj.LowRank(ONES[:, :2], np.eye(3), ONES)


def top_curvature(**options):
    options = {"probes": 1, "key": KEY, **options}
    return lrj.optim.precondition_top_curvature(optax.sgd(0.1), square, **options)


CASES = {
    "a picture of several operators": (
        lambda: lrj.plot.spectrum(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), OPERATOR)),
        ValueError,
        r"this is a batch of operators, core of shape \(2, 3, 3\): use it under jax.vmap",
    ),
    "a picture of pairs in another space": (
        lambda: lrj.plot.spectrum(OPERATOR, (ONES[:, :2], ONES[:, :2])),
        ValueError,
        r"pairs must have the shape that h gives, \(3, 4\), got \(3, 2\)",
    ),
    "a plane of one eigenvector": (
        lambda: lrj.plot.landscape(square, ROW, OPERATOR),
        ValueError,
        r"h must have two eigenvalues that are not zero, got \[12",
    ),
    "a landscape of what is not a number": (
        lambda: lrj.plot.landscape(jnp.sin, ROW, lrj.SymmetricLowRank(np.eye(4), np.eye(4))),
        ValueError,
        r"loss must return a scalar, got shape \(4,\)",
    ),
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
    "a dense matrix for a base": (
        lambda: lrj.fit(PAIRS, base=np.eye(4)),
        ValueError,
        r"base must be a number or a vector, got a matrix .*SymmetricLowRank\(jnp.eye",
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
    "argnums twice": (
        lambda: lrj.secant_hessian(square, (0, 0))(ONES),
        ValueError,
        r"argnums must name each argument once, got \(0, 0\)",
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
    "a batch size of 1.5": (
        lambda: lrj.secant_pairs(square, batch_size=1.5),
        TypeError,
        "batch_size must be a Python int, got 1.5",
    ),
    "pairs that are none": (
        lambda: lrj.fit([ONES, ONES]),
        TypeError,
        r"pairs must be SecantPairs or a tuple \(steps, grad_diffs\), got list",
    ),
    "three for a pair": (
        lambda: lrj.diagnose(OPERATOR, (ONES, ONES, ROW)),
        TypeError,
        r"pairs must be SecantPairs or a tuple \(steps, grad_diffs\), got a tuple of 3",
    ),
    "a solver that is none": (
        lambda: lrj.secant_hessian(square, solver=3),
        TypeError,
        "solver must be a function, got int",
    ),
    "a solver that returns no operator, for a model": (
        lambda: lrj.quadratic_model(square, solver=lambda pairs: pairs)(ONES),
        TypeError,
        "what solver returned must be a SymmetricLowRank or a DiagonalPlusLowRank, got SecantPairs",
    ),
    "a solver that returns no operator, for a model at a point": (
        lambda: lrj.quadratic_model_at(square, 1, solver=lambda pairs: ONES)(ROW, key=KEY),
        TypeError,
        "what solver returned must be a SymmetricLowRank or a DiagonalPlusLowRank, got ndarray",
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
    "a diagonal that is no array": (
        lambda: lrj.DiagonalPlusLowRank(2.0, operator()).solve({"a": ROW}),
        TypeError,
        "diag must hold arrays, got 2.0",
    ),
    "no damping": (
        lambda: operator().sample(jax.random.key(0), None),
        ValueError,
        "damping must have the tree structure of a factor of the operator",
    ),
    "a number of draws that is none": (
        lambda: operator().sample(jax.random.key(0), 1.0, (2.0,)),
        TypeError,
        "shape must be a Python int, got 2.0",
    ),
    "a function of the eigenvalues that does not vanish at 0": (
        lambda: operator().map_spectrum(jnp.exp),
        ValueError,
        "f must be 0 at 0, got 1.0",
    ),
    "a function of the eigenvalues that returns truth values": (
        lambda: operator().map_spectrum(lambda s: s > 0),
        TypeError,
        "f must return floating-point numbers, got dtype bool",
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
    "a direction that does not fit": (
        lambda: lrj.hvp(square)(ROW, ROW[:2]),
        ValueError,
        r"v must have the shape that x gives, \(4,\), got \(2,\)",
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
    "a gradient that does not fit": (
        lambda: lrj.lowrank_hessian_from_gradient(lambda x: x[:2], 1)(ROW, key=KEY),
        ValueError,
        r"grad_fn\(x\) must have the shape that x gives, \(4,\), got \(2,\)",
    ),
    "a gradient on the host of whole numbers": (
        lambda: lrj.lowrank_hessian_from_gradient(lambda x: np.ones(4, int), 1)(ROW, key=KEY),
        TypeError,
        r"grad_fn\(x\) must be a real floating-point array, got dtype int",
    ),
    "NumPy under jit": (
        lambda: jax.jit(lrj.lowrank_hessian_from_gradient(np.asarray, 1))(ROW, key=KEY),
        TypeError,
        "Tracer",
    ),
    "a product that does not fit": (
        lambda: lrj.probe_pairs(lambda x, v: v[:2], 1)(ROW, key=KEY),
        ValueError,
        r"product\(x, v\) must have the shape that x gives, \(4,\), got \(2,\)",
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
    "a diagnosis of other pairs": (
        lambda: lrj.diagnose(operator(), PAIRS),
        ValueError,
        "pairs.steps must have the tree structure",
    ),
    "a history of nothing": (
        lambda: lrj.history.pairs(lrj.history.init({}, 2)),
        ValueError,
        "history.params must hold at least one array",
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
    "a pairing that returns no pairs": (
        lambda: lrj.secant_pairs(square, pairing=lambda points, grads: points)(ONES),
        TypeError,
        "pairing must return SecantPairs, got",
    ),
    "rounding of whole numbers": (
        lambda: lrj.fit(PAIRS._replace(rounding=np.ones(3, int))),
        TypeError,
        "pairs.rounding must be a real floating-point array, got dtype int",
    ),
    "a comparison with the operator of another space": (
        lambda: lrj.compare_hvp(square, operator(), ROW, ONES),
        ValueError,
        "x must have the tree structure of a factor of hessian",
    ),
    "whole numbers for updates": (
        lambda: top_curvature().update(ROW.astype(int), top_curvature().init(ROW), ROW),
        TypeError,
        "updates must be a real floating-point array, got dtype int",
    ),
    "a gradient function that is none": (
        lambda: lrj.optim.scale_by_secant(2).update(
            ROW, lrj.optim.scale_by_secant(2).init(ROW), ROW, grad_fn=3
        ),
        TypeError,
        "grad_fn must be a function, got int",
    ),
    "a description for points": (
        lambda: lrj.centered(jax.ShapeDtypeStruct((3, 4), np.float32), ONES),
        TypeError,
        "points must be an array, got ShapeDtypeStruct",
    ),
    "an array of text": (
        lambda: lrj.centered(np.array(["a"]), ONES),
        TypeError,
        "points must be an array, got dtype <U1",
    ),
    "extrapolate a tree": (
        lambda: lrj.fit(PAIRS, extrapolate={}),
        TypeError,
        "extrapolate must be a real number, got dict",
    ),
    "a loss of text": (
        lambda: lrj.hvp(lambda x: "low")(ROW, ROW),
        TypeError,
        "loss must return a scalar, got str",
    ),
    "argnums a bool": (
        lambda: lrj.secant_hessian(square, True)(ONES),
        TypeError,
        "argnums must be an int or a sequence of ints, got True",
    ),
    "raw keys of another size": (
        lambda: lrj.top_eigenpair(square)(ROW, key=np.zeros(5, np.uint32)),
        ValueError,
        r"key must be one random key, got an array of shape \(5,\)",
    ),
    "indices of different length": (
        lambda: lrj.skeleton(ONES, [[0], [1, 2]], [0]),
        TypeError,
        r"rows must be integers, got \[\[0\], \[1, 2\]\]",
    ),
    "a line search without what it needs": (
        lambda: lrj.optim.secant_newton().update(
            ROW, lrj.optim.secant_newton().init(ROW), ROW, value=1.0
        ),
        TypeError,
        "update of secant_newton with its line search must get .* got no grad, value_fn; or give",
    ),
    "a module with its functions": (
        lambda: lrj.lowrank_hessian(square, 2)({"x": ROW, "f": jnp.tanh}, key=KEY),
        TypeError,
        r"x\['f'\] must be an array, got .*; of a module give its arrays alone: equinox.partition",
    ),
    "one pair without its leading axis": (
        lambda: lrj.fit((ROW, ROW), base=lrj.SymmetricLowRank(jnp.eye(4), jnp.eye(4))),
        ValueError,
        r"pairs.steps must have the shape that a factor of base gives, \(n, 4\), got \(4,\)",
    ),
    "a model without a Hessian": (
        lambda: model(hessian=np.eye(4)).newton_step(1.0),
        TypeError,
        "hessian must be a SymmetricLowRank or a DiagonalPlusLowRank, got ndarray",
    ),
    "a model whose gradient is no array": (
        lambda: model(grad="steep").trust_region_step(1.0),
        TypeError,
        "grad must be an array, got str",
    ),
    "a model whose value is complex": (
        lambda: model(value=1j).predict(ROW),
        TypeError,
        "value must be a real number, got dtype complex",
    ),
    "a batch of models": (
        lambda: jax.tree.map(lambda x: jnp.asarray(x)[None], model()).newton_step(1.0),
        ValueError,
        r"this is a batch of operators, core of shape \(1, 3, 3\)",
    ),
    **{
        f"a gradient that does not fit the Hessian, {step}": (
            lambda step=step, args=args: getattr(model(grad=ROW[:2]), step)(*args),
            ValueError,
            r"grad must have the shape that a factor of hessian gives, \(4,\), got \(2,\)",
        )
        for step, args in {
            "predicted_change": (ROW,),
            "newton_step": (1.0,),
            "cauchy_step": (),
            "trust_region_step": (1.0,),
        }.items()
    },
}


# What every argument of this name may be, and may not.
ARGUMENTS = {
    "a": (ONES, ONES.astype(int)),
    "anchor": (ROW, ROW[:2]),
    "anchor_grad": (ROW, ROW[:2]),
    "argnums": (0, "x"),
    "ax": (None, 3),
    "base": (1.0, "identity"),
    "batch_size": (1, 0),
    "batches": ([ROW], 3),
    "central": (True, "yes"),
    "cols": ([0], 0.5),
    "count": (2, 1),
    "d": (1.0, 1j),
    "damping": (1.0, "much"),
    "every": (1, 0),
    "extrapolate": (0.5, 1.5),
    "f": (jnp.sin, 3),
    "grad_fn": (jax.grad(square), 3),
    "grads": (ONES, ONES > 0),
    "h": (ROW, ROW[:2]),
    "has_aux": (False, "yes"),
    "hessian": (OPERATOR, 3),
    "history": (lrj.history.init(ROW, 2), 3),
    "inner": (optax.sgd(0.1), 3),
    "k": (ROW, ROW[:2]),
    "key": (KEY, 0),
    "learning_rate": (0.1, 0.0),
    "like": (None, ROW),
    "loss": (square, 3),
    "memory_size": (1, 0),
    "model": (lambda x, inputs: x, 3),
    "pairing": (lrj.centered, 3),
    "pairs": (PAIRS, 3),
    "params": (ROW, ROW.astype(int)),
    "passes": (1, 0),
    "points": (ONES, ONES.astype(int)),
    "probes": (1, 0),
    "product": (lambda x, v: v, 3),
    "progress": (False, "yes"),
    "return_pairs": (False, "yes"),
    "radius": (1.0, 0.0),
    "rank": (1, -1),
    "rows": ([0], [[0], [1, 2]]),
    "rtol": (0.5, -1.0),
    "shape": ((1,), 3),
    "samples": (2, 1),
    "solver": (lrj.fit, 3),
    "start": (ROW[None], ROW),
    "step": (None, 0.0),
    "tol": (0.5, -1.0),
    "u": (ROW, ROW[:2]),
    "v": (ROW, ROW[:2]),
    "vectors": (ONES, ONES[:, :2]),
    "weights": (np.ones(len(PAIRS.steps)), -np.ones(len(PAIRS.steps))),
    "x": (ROW, ROW.astype(int)),
}
OF_ONE = dict.fromkeys((("spectrum", "h"), ("landscape", "h")), (OPERATOR, ROW))
FREE = ("args", "inputs", "targets")
UNCHECKED = (
    ("secant_newton", "learning_rate"),  # optax's own
    ("DiagonalPlusLowRank.sample", "shape"),  # behind a default; as `SymmetricLowRank.sample`
)
THEN = {  # the arguments of the functions that public functions return
    "gauss_newton_product": ("x", "v", "inputs", "targets"),
    "gradient_difference": ("x", "v"),
    "hvp": ("x", "v"),
    "lowrank_from_product": ("x", "key"),
    "lowrank_hessian": ("x", "key"),
    "lowrank_hessian_from_gradient": ("x", "key"),
    "lowrank_jacobian": ("x", "key"),
    "estimate": ("x", "key"),
    "mean_gradient": ("params",),
    "mean_product": ("x", "v"),
    "probe_pairs": ("x", "key"),
    "quadratic_model": ("points",),
    "quadratic_model_at": ("x", "key"),
    "second_derivative": ("x", "h", "k"),
    "secant_hessian": ("points",),
    "secant_pairs": ("points",),
    "top_eigenpair": ("x", "key"),
}


def public_functions():
    """Functions and methods by name, methods bound."""
    for name in lrj.__all__:
        face = getattr(lrj, name)
        if inspect.isfunction(face):
            yield name, face
        elif inspect.ismodule(face):
            for key, function in vars(face).items():
                if getattr(function, "__module__", "") == face.__name__ and key[0].islower():
                    yield key, function
    rectangular = lrj.LowRank(ONES, np.eye(3), ONES)
    for instance in (OPERATOR, OPERATOR.plus_diagonal(1.0), rectangular, model()):
        for key in vars(type(instance)):
            if key[0] != "_" and callable(getattr(instance, key)):
                yield f"{type(instance).__name__}.{key}", getattr(instance, key)


FUNCTIONS = dict(public_functions())


def arguments():
    for name, function in FUNCTIONS.items():
        both = (*inspect.signature(function).parameters, *THEN.get(name, ()))
        yield from ((name, key) for key in both if key not in FREE and (name, key) not in UNCHECKED)


@pytest.mark.parametrize(("name", "wrong"), list(arguments()))
def test_every_argument_of_every_public_function_is_checked(name, wrong):
    def value(key):
        right_and_wrong = OF_ONE.get((name, key)) or ARGUMENTS.get(key)
        return right_and_wrong[key == wrong] if key not in FREE else None

    def call():
        given, named = [], {}
        for key, parameter in inspect.signature(FUNCTIONS[name]).parameters.items():
            optional = parameter.default is not parameter.empty
            if key != wrong and (key in FREE or optional):
                continue
            if optional or parameter.kind is parameter.KEYWORD_ONLY:
                named[key] = value(key)
            else:
                given.append(value(key))
        result = FUNCTIONS[name](*given, **named)
        then = {key: value(key) for key in THEN[name]}
        key = {"key": then.pop("key")} if "key" in then else {}
        result(*then.values(), **key)

    with pytest.raises((TypeError, ValueError), match=rf"^{wrong}\b"):
        call()


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_an_error_that_says_what_is_wrong(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_an_integer_of_numpy_names_an_argument():
    assert jnp.array_equal(lrj.hvp(lambda c, x: square(x), np.int64(1))(ROW, ROW, 0), 2 * ROW)


def test_errors_come_at_trace_time():
    with pytest.raises(ValueError, match="loss must return a scalar"):
        jax.jit(lrj.secant_hessian(lambda x: x)).lower(jax.ShapeDtypeStruct((3, 4), np.float32))
