"""What is made of pairs that are there already: a sampler's mass matrix, a molecule's Hessian.

Beside blackjax's metric of draws and their gradients, and sella's updates. Both problems are small
enough for the exact Hessian, which judges all, and in double precision. Each is solved for several
draws or starts; seconds are those of all of them, given for one.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize

import lowrank_jax as lrj
from benchmarks import measure
from benchmarks.measure import Call
from benchmarks.methods import Method, available
from benchmarks.options import Options
from benchmarks.problems import digits

DRAWS = 20, 200
ATOMS, UPDATES = 13, 10
REPEATS = 20  # sets of draws, starts
PRIOR = np.append(np.ones(64), 0.01)  # precisions of the 64 pixels' weights and the intercept's
LEAST = 0.5  # of the bulk's curvature is left in every direction


def posterior(options: Options) -> dict:
    """The mass matrix of a logistic regression: are these digits odd?

    `error` is the condition number of the preconditioned Hessian at the mode, 1 at best. The draws
    are those of Laplace's approximation, and their gradients are the posterior's own.
    """
    with jax.enable_x64(True):
        mode, gradients, exact = _regression()
        random, root = np.random.default_rng(0), np.linalg.cholesky(np.linalg.inv(exact))
        cases = {}
        for n in DRAWS:
            normal = random.normal(size=(3 if options.quick else REPEATS, n, len(mode)))
            draws = mode + normal @ root.T
            problems = [(jnp.asarray(x), gradients(x)) for x in draws]
            methods = {
                "none": Method(lambda x, g: np.eye(x.shape[1])),
                "variances of the draws": Method(lambda x, g: np.diag(np.var(x, axis=0))),
                "blackjax, low-rank metric": Method(_blackjax(min(n, len(mode))), "blackjax"),
                "fit": Method(_mass(0)),
                "fit, the prior known": Method(_mass(PRIOR)),
            }
            error = partial(_condition, exact)
            found = _compared(methods, problems, lambda w, _, error=error: error(w), options)
            cases[f"logistic posterior, mass matrix of {n} draws"] = {"methods": found}
    return cases


def cluster(options: Options) -> dict:
    """A cluster's Hessian after ten steps of its relaxation, from the one at the start.

    `error` is the relative Frobenius error against the exact Hessian at the last point.
    """
    with jax.enable_x64(True):
        paths = _relaxations(3 if options.quick else REPEATS)
        steps = [(hessian, np.diff(x, axis=0), np.diff(g, axis=0)) for x, g, hessian, _ in paths]
        exact = [last for *_, last in paths]
        methods = {"the Hessian of the start": Method(lambda h, s, y: h)}
        for name in ("TS-BFGS", "PSB"):
            methods[f"sella, {name}, one by one"] = Method(_sella(name, False), "sella")
            methods[f"sella, {name}, all pairs"] = Method(_sella(name, True), "sella")
        methods |= {"fit(base=), one by one": Method(_one_by_one())}
        methods |= {"fit(base=), all pairs": Method(_all_at_once())}

        def error(found, i):
            return np.linalg.norm(found - exact[i]) / np.linalg.norm(exact[i])

        found = _compared(methods, steps, error, options)
    return {f"Lennard-Jones cluster, {UPDATES} updates": {"methods": found}}


def _compared(
    methods: dict[str, Method], problems: list[tuple], error: Callable, options: Options
) -> dict:
    """Times in turns over all problems, for one, and the median of the errors."""
    methods = available(methods, options.methods)

    def all_of(make):
        return [jax.block_until_ready(make(*problem)) for problem in problems]

    share = len(problems)
    calls = {name: Call(all_of, (of.make,), share=share) for name, of in methods.items()}
    found = measure.compare(calls, "", options.rounds, 0.0)
    for name, call in calls.items():
        errors = [error(_dense(result), i) for i, result in enumerate(call.run())]
        found[name]["error"] = float(np.median(errors))
        found[name]["quartiles_of_error"] = [float(q) for q in np.quantile(errors, [0.25, 0.75])]
        del found[name]["share_measured"]
    return found


def _dense(found):
    return np.asarray(found.to_dense() if hasattr(found, "to_dense") else found)


# The posterior.


def _regression():
    """The mode, the gradients at rows of weights, and the Hessian at the mode."""
    images, labels = digits()
    x = np.concatenate([np.asarray(images, float), np.ones((len(images), 1))], axis=1)
    odd = np.asarray(labels % 2, float)

    def loss(w, x, odd):
        z = x @ w
        return jnp.sum(jax.nn.softplus(z) - odd * z) + jnp.sum(PRIOR * w * w) / 2

    at = jax.jit(jax.value_and_grad(loss))
    zero = np.zeros(x.shape[1])
    found = scipy.optimize.minimize(at, zero, (x, odd), jac=True, options={"gtol": 1e-6})
    gradients = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None, None)))
    return found.x, lambda w: gradients(w, x, odd), jax.hessian(loss)(found.x, x, odd)


def _condition(exact, inverse_mass):
    """Of the Hessian that a sampler with that inverse of a mass matrix sees."""
    values = scipy.linalg.eigvals(inverse_mass @ exact).real
    return values.max() / values.min()


def _blackjax(rank):
    from blackjax.adaptation.metric_estimators import fisher_score_low_rank

    @jax.jit
    def metric(x, g):
        sigma, u, values = fisher_score_low_rank(x, -g, max_rank=rank)
        inner = jnp.eye(x.shape[1]) + (u * (values - 1)) @ u.T
        return sigma[:, None] * inner * sigma

    return metric


def _mass(prior):
    """The inverse of a positive definite fit: a prior that is known is taken out before."""

    @jax.jit
    def inverse(x, g):
        pairs = lrj.centered(x, g - prior * x)
        if np.any(prior):
            return lrj.fit(pairs).positive_part().plus_diagonal(jnp.asarray(prior)).inverse()
        # Draws in all directions leave none to what the base says.
        bulk = lrj.choose_shift(pairs) if len(x) < x.shape[1] else 1.0
        return _definite(lrj.fit(pairs, base=bulk)).inverse()

    return inverse


def _definite(h):
    """With no eigenvalue below `LEAST` times that of the bulk."""
    low = h.low_rank.map_spectrum(lambda s: jnp.maximum(s, (LEAST - 1) * h.diag))
    return low.plus_diagonal(h.diag)


# The cluster.


def _energy(x):
    """The sum of 4 (1 / r^12 - 1 / r^6) over all pairs of atoms."""
    atoms = x.reshape(-1, 3)
    i, j = np.triu_indices(len(atoms), 1)
    sixth = jnp.sum((atoms[i] - atoms[j]) ** 2, axis=1) ** -3
    return 4 * jnp.sum(sixth**2 - sixth)


def _relaxations(count):
    """Points and gradients of relaxations of a shaken icosahedron, and both ends' Hessians."""
    at, hessian = jax.jit(jax.value_and_grad(_energy)), jax.jit(jax.hessian(_energy))
    golden = (1 + 5**0.5) / 2
    corners = np.array([[0, s, t * golden] for s in (1, -1) for t in (1, -1)])
    shell = np.concatenate([corners, corners[:, [1, 2, 0]], corners[:, [2, 0, 1]]])
    icosahedron = np.append(1.1 * shell / np.linalg.norm(shell[0]), np.zeros(3))
    random, paths = np.random.default_rng(0), []
    for _ in range(count):
        x = [icosahedron + 0.05 * random.normal(size=3 * ATOMS)]
        options = {"maxiter": UPDATES}
        scipy.optimize.minimize(
            at, x[0], jac=True, method="L-BFGS-B", callback=x.append, options=options
        )
        x = np.array(x)
        gradients = np.array([at(row)[1] for row in x])
        paths.append((x, gradients, np.asarray(hessian(x[0])), np.asarray(hessian(x[-1]))))
    return paths


def _sella(method, at_once):
    from sella.hessian_update import update_H

    def update(h, s, y):
        if at_once:
            return update_H(h, s.T, y.T, method=method)
        for step, difference in zip(s, y, strict=True):
            h = update_H(h, step, difference, method=method)
        return h

    return update


def _base(h):
    """A dense Hessian as an operator, with the unit vectors for factors."""
    return lrj.SymmetricLowRank(jnp.eye(len(h)), h)


def _all_at_once():
    return jax.jit(lambda h, s, y: lrj.fit((s, y), base=_base(h)))


def _one_by_one():
    @jax.jit
    def update(h, s, y):
        def step(h, pair):
            pair = jax.tree.map(lambda row: row[None], pair)
            return lrj.fit(pair, base=h).truncate(3 * ATOMS), None

        return jax.lax.scan(step, _base(h), (s, y))[0]

    return update
