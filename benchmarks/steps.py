"""How long the steps of gradient differences are, beside the best ones, on eighty problems.

Each problem of `step_problems` is a gradient as a user has it, at a point, and exact products in
float64.
"""

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_jax as lrj
from benchmarks.options import Options
from benchmarks.step_problems import HELD_OUT, PROBLEMS, Problem


def directions(problem: Problem) -> dict[str, np.ndarray]:
    """A random unit vector, and one along the eigenvalue of largest magnitude or near it."""
    draws = np.random.default_rng(7)
    random, v = draws.normal(size=(2, problem.x.size))
    for _ in range(40):
        v = np.asarray(problem.exact(np.asarray(problem.exact(v / np.linalg.norm(v)))))
    return {
        name: (u / np.linalg.norm(u)).astype(problem.x.dtype)
        for name, u in (("random", random), ("leading", v))
    }


def study(name: str, problem: Problem) -> list[dict]:
    """Along each direction: the pair that the library measures, beside those of fixed steps."""
    found = []
    for direction, v in directions(problem).items():
        counts = []

        def gradient(x, counts=counts):
            counts.append(1)
            return problem.gradient(x)

        at = lrj.lowrank_hessian_from_gradient(
            gradient, 1, passes=1, start=v[None], solver=lambda pairs: pairs
        )
        pairs = at(problem.x, key=jax.random.key(0))
        error = _error(problem, np.asarray(pairs.steps)[0], np.asarray(pairs.grad_diffs)[0])
        best = min(_error_of_step(problem, v, h) for h in _decades(problem.x, v))
        found.append(
            {
                "problem": name,
                "direction": direction,
                "error": error,
                "best": best,
                "central": _central_error(name, problem, v),
                "estimate": float(pairs.rounding[0]),
                "extra": len(counts) - 2,  # one at x and one for the pair
            }
        )
    return found


def _central_error(name, problem, v):
    """That of `gradient_difference(central=True)`; not of noise, which a program draws once."""
    if name.startswith("noise"):
        return None

    @jax.custom_vjp
    def loss(x):
        return jnp.zeros((), x.dtype)

    loss.defvjp(lambda x: (loss(x), x), lambda x, g: (g * problem.gradient(x).astype(x.dtype),))
    product = lrj.gradient_difference(loss, central=True)
    return _error(problem, v, np.asarray(product(problem.x, v)))


def _error(problem, s, y):
    truth = np.asarray(problem.exact(s.astype(float)))
    return float(np.linalg.norm(y.astype(float) - truth) / np.linalg.norm(truth))


def _decades(x, v):
    """Ten and more, those that x is too coarse for left out."""
    size = np.linalg.norm(x.astype(float)) or 1.0
    lengths = size * 10.0 ** np.arange(-13, 3)
    return [h for h in lengths if np.linalg.norm(_step(x, v, h) / h - v) < 0.5]


def _step(x, v, h):
    return (x + (h * v.astype(float))).astype(x.dtype).astype(float) - x


def _error_of_step(problem, v, h):
    x, s = problem.x, _step(problem.x, v, h)
    ahead = (x + s).astype(x.dtype)
    pair = (np.asarray(problem.gradient(y)).astype(float) for y in (ahead, x))
    error = _error(problem, s, np.subtract(*pair))
    return error if np.isfinite(error) else np.inf


def summary(found: list[dict]) -> dict[str, float]:
    """Quantiles of the error over the best one-sided, how the estimate does, what it costs."""
    error, best, estimate, extra = (
        np.array([each[key] for each in found]) for key in ("error", "best", "estimate", "extra")
    )
    ratio = error / best
    central = np.array([e["central"] / e["best"] for e in found if e["central"] is not None])
    return {
        "median": float(np.median(ratio)),
        "90 %": float(np.quantile(ratio, 0.9)),
        "worst": float(np.max(ratio)),
        "central, median": float(np.median(central)),
        "central, 90 %": float(np.quantile(central, 0.9)),
        "estimate within 3x": float(np.mean((estimate < 3 * error) & (error < 3 * estimate))),
        "above 10 % and not flagged": int(np.sum((error > 0.1) & (estimate < 0.03))),
        "most gradients more": int(np.max(extra)),
        "gradients more": float(np.mean(extra)),
    }


def steps(options: Options) -> dict:
    """The table: what each problem and each kind of direction gives. Needs double precision."""
    jax.config.update("jax_enable_x64", True)
    names = list(PROBLEMS)[:: 8 if options.quick else 1]
    found = [each for name in names for each in study(name, PROBLEMS[name]())]
    cases = {
        f"{direction}, {kind}": summary(
            [e for e in found if e["direction"] == direction and (e["problem"] in HELD_OUT) == held]
        )
        for direction in ("random", "leading")
        for kind, held in (("fixed on these", False), ("held out", True))
        if any((e["problem"] in HELD_OUT) == held for e in found)
    }
    return {"summaries": cases, "problems": found}
