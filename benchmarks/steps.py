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


def directions(problem: Problem, count: int) -> dict[str, np.ndarray]:
    """Random unit vectors, and as many near the eigenvector of largest magnitude.

    Near it, so that no two gradients are rounded alike: at 0.1 from it.
    """
    starts = np.random.default_rng(7).normal(size=(count, 2, problem.x.size))
    random, leading = starts[:, 0], starts[:, 1]
    for _ in range(40):
        units = leading / np.linalg.norm(leading, axis=1)[:, None]
        leading = np.stack([problem.exact(np.asarray(problem.exact(v))) for v in units])
    leading = units + 0.1 * random / np.linalg.norm(random, axis=1)[:, None]
    return {
        name: (rows / np.linalg.norm(rows, axis=1)[:, None]).astype(problem.x.dtype)
        for name, rows in (("random", random), ("leading", leading))
    }


def study(name: str, problem: Problem, count: int = 1) -> list[dict]:
    """Along so many directions of each kind: the pair that the library measures.

    Beside it that of a fixed step, of the length whose median error is least.
    """
    found = []
    for direction, vectors in directions(problem, count).items():
        fixed = np.stack([_errors_of_steps(problem, v) for v in vectors])
        fixed = fixed[:, np.argmin(np.median(fixed, axis=0))]
        for v, best in zip(vectors, fixed, strict=True):
            counts = []

            def gradient(x, counts=counts):
                counts.append(1)
                return problem.gradient(x)

            at = lrj.lowrank_hessian_from_gradient(
                gradient, 1, passes=1, start=v[None], solver=lambda pairs: pairs
            )
            pairs = at(problem.x, key=jax.random.key(0))
            error = _error(problem, np.asarray(pairs.steps)[0], np.asarray(pairs.grad_diffs)[0])
            found.append(
                {
                    "problem": name,
                    "direction": direction,
                    "error": error,
                    "best": float(best),
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


def _errors_of_steps(problem, v):
    """Those of ten decades and more; infinite where x is too coarse for the step."""
    size = np.linalg.norm(problem.x.astype(float)) or 1.0
    return np.array([_error_of_step(problem, v, h) for h in size * 10.0 ** np.arange(-13, 3)])


def _error_of_step(problem, v, h):
    x = problem.x
    s = (x + (h * v.astype(float))).astype(x.dtype).astype(float) - x
    if np.linalg.norm(s / h - v) >= 0.5:
        return np.inf
    ahead = (x + s).astype(x.dtype)
    pair = (np.asarray(problem.gradient(y)).astype(float) for y in (ahead, x))
    error = _error(problem, s, np.subtract(*pair))
    return error if np.isfinite(error) else np.inf


def summary(found: list[dict]) -> dict[str, float]:
    """Quantiles over problems of the error over that of the best fixed step, medians of directions.

    How the estimate does, and what it costs, along all directions.
    """
    error, estimate, extra = (
        np.array([each[key] for each in found]) for key in ("error", "estimate", "extra")
    )
    ratio = [_median(e, "error") / _median(e, "best") for e in _by_problem(found)]
    central = [each for each in found if each["central"] is not None]
    central = [_median(e, "central") / _median(e, "best") for e in _by_problem(central)]
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


def _by_problem(found):
    cases: dict = {}
    for each in found:
        cases.setdefault((each["problem"], each["direction"]), []).append(each)
    return cases.values()


def _median(found, key):
    return np.median([each[key] for each in found])


def steps(options: Options) -> dict:
    """The table: what each problem and each kind of direction gives. Needs double precision."""
    jax.config.update("jax_enable_x64", True)
    names = list(PROBLEMS)[:: 8 if options.quick else 1]
    count = 1 if options.quick else 5
    found = [each for name in names for each in study(name, PROBLEMS[name](), count)]
    return {"summaries": summaries(found), "problems": found}


def summaries(found: list[dict]) -> dict[str, dict]:
    """Of each kind of direction: of problems that the rule was fixed on, of others, of all."""
    cases: dict = {}
    for each in found:
        for kind in ("held out" if each["problem"] in HELD_OUT else "fixed on these", "all"):
            cases.setdefault(f"{each['direction']}, {kind}", []).append(each)
    return {name: summary(chosen) for name, chosen in cases.items()}
