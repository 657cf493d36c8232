# %% [markdown]
# # A posterior: its evidence, its draws, and a sampler's mass matrix
#
# Is a handwritten digit odd? A logistic regression on its 64 pixels and an intercept says so.
# Each of the 65 weights has a normal prior with a precision of its own: 1 for the pixels, 0.01
# for the intercept. Four questions, for which one usually forms a 65 x 65 matrix:
#
# 1. How good is the model, after all weights are averaged over: its *evidence*?
# 2. Is that number right, or is the posterior not as normal as it assumes?
# 3. Which mass matrix makes the sampler NUTS fast, when all that is known are its last 20 draws?
# 4. How would the weights scatter over other data: 200 bootstraps?
#
# 65 weights are few enough for the closed form to judge every answer: `X^T diag(p (1 - p)) X`.
# Nothing below needs it, and nothing below is dense.

# %%
import sys
from pathlib import Path

sys.path += map(str, Path(globals().get("__file__", "here")).resolve().parents)  # for benchmarks/

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.mcmc.metrics import Metric

import lowrank_jax as lrj
from benchmarks import notebook
from benchmarks.notebook import BLUE, GREY, QUICK, RED, say
from benchmarks.problems import digits

pixels, classes = (np.asarray(array) for array in digits())
X = np.concatenate([pixels, np.ones((len(pixels), 1), np.float32)], axis=1)  # (1797, 65)
odd = (classes % 2).astype(np.float32)
PRIOR = np.append(np.ones(64), 0.01).astype(np.float32)
ONCE = np.ones(len(X), np.float32)  # how often each image counts
DIM = X.shape[1]


def negative_log_likelihood(w, counts):
    z = X @ w
    return jnp.sum(counts * (jax.nn.softplus(z) - odd * z))


def negative_log_posterior(w):
    """Without the constant of the prior."""
    return negative_log_likelihood(w, ONCE) + jnp.sum(PRIOR * w * w) / 2


def exact_hessian(w, counts):
    """Of the negative log-likelihood, with pencil and paper."""
    p = 1 / (1 + np.exp(-(X.astype(float) @ w)))
    return (X.T * (counts * p * (1 - p))) @ X


value_and_gradient = jax.jit(jax.value_and_grad(negative_log_posterior))


def in_double(w):
    value, gradient = value_and_gradient(w.astype(np.float32))
    return float(value), np.asarray(gradient, float)


found_mode = scipy.optimize.minimize(in_double, np.zeros(DIM), jac=True, method="L-BFGS-B")
mode = found_mode.x.astype(np.float32)
say(f"the mode: negative log posterior {float(negative_log_posterior(mode)):.2f}")

# %% [markdown]
# ## 1. The evidence
#
# Laplace's approximation takes the posterior for a normal distribution about the mode. Then the
# logarithm of the evidence is, up to known constants, minus the negative log posterior there and
# minus `log det(H + diag(prior)) / 2`. H is that of the likelihood alone, positive semidefinite and
# of fast decaying spectrum; the prior is a diagonal: `h.logdet(prior)` takes the two together.
#
# A few gradients see a part of H only, so that the determinant is too small and the evidence too
# large. `lrj.estimate` asks 20 products with random vectors what is missing. To first order
# that is an *upper* bound of the determinant, in expectation. So there is a bracket, and
# an error bar for the second of its ends.
#
# `positive_part` removes what a fit has of negative curvature, which no likelihood of this kind
# has.

# %%
say("1. the evidence, its logarithm")
COUNTS = 16, 32, 48
hessian_at = lrj.lowrank_hessian(negative_log_likelihood, 4, passes=12, return_pairs=True)
_, all_pairs = hessian_at(mode, ONCE, key=jax.random.key(0))
exact = exact_hessian(mode, ONCE)
constant = -negative_log_posterior(mode) + np.sum(np.log(PRIOR)) / 2
exact_evidence = constant - np.linalg.slogdet(exact + np.diag(PRIOR))[1] / 2


def of_first(count):
    """The Hessian from so many of the pairs; the others are zero, and no fit uses them."""
    rows = (np.arange(COUNTS[-1]) < count)[:, None]
    pairs = all_pairs.steps * rows, all_pairs.grad_diffs * rows
    return lrj.fit(pairs).positive_part()


brackets = {}
print(f"  {'gradients':>9}{'of H_r':>12}{'corrected':>12}{'error bar':>12}{'closed form':>14}")
for count in COUNTS:
    hessian = of_first(count)
    estimates = lrj.estimate(lrj.hvp(negative_log_likelihood), hessian, 20)
    corrected = estimates(mode, ONCE, key=jax.random.key(1)).logdet(PRIOR)
    high, low = (float(constant - d / 2) for d in (hessian.logdet(PRIOR), corrected.value))
    bar = 1.96 * float(corrected.standard_error) / 2
    brackets[count] = low, high, bar
    print(f"  {count + 1:9}{high:12.2f}{low:12.2f}{bar:12.2f}{exact_evidence:14.2f}")
    assert low - bar < exact_evidence < high
h = hessian  # of 49 gradients
assert brackets[48][1] - brackets[48][0] < 8
assert brackets[16][1] - brackets[16][0] > 30

# %% [markdown]
# With 17 gradients the bracket is useless, and says so; with 49 it is a few units wide. (Where
# units matter, all 65 directions are 66 gradients.)
#
# ## 2. Draws, and what Laplace's approximation leaves out
#
# `h.sample` draws from the normal distribution with the precision `H_r + diag(prior)`. Weighted by
# how far the true posterior departs from it, the draws give the evidence without any approximation:
# importance sampling.

# %%
say("2. draws")
NUMBER = 2000 if QUICK else 20000


@jax.jit
def log_weights(h, deviations):
    """The log of the posterior over the normal density, for each draw."""
    precision = h.plus_diagonal(PRIOR)

    def of_one(d):
        return precision.bilinear(d, d) / 2 - negative_log_posterior(mode + d)

    return jax.vmap(of_one)(deviations) - precision.logdet() / 2 + np.sum(np.log(PRIOR)) / 2


weights = np.asarray(log_weights(h, h.sample(jax.random.key(2), PRIOR, (NUMBER,))), float)
relative = np.exp(weights - weights.max())
sampled = weights.max() + np.log(relative.mean())
sampled_bar = 1.96 * relative.std() / relative.mean() / NUMBER**0.5
useful = relative.sum() ** 2 / np.sum(relative**2)
print(f"  {NUMBER} draws, of which {useful:.0f} count: evidence {sampled:.2f} +- {sampled_bar:.2f}")
print(f"  Laplace's approximation, closed form:  {exact_evidence:.2f}")
assert abs(sampled - exact_evidence) < 2

# %% [markdown]
# ## 3. A mass matrix for NUTS, from 20 draws
#
# A sampler moves well where its mass matrix resembles the posterior's precision. The usual
# warm-up estimates variances from the draws, one a coordinate. But each draw comes with its
# gradient, and these are secant pairs: `fit` makes the likelihood's Hessian of 20 draws, and the
# prior is known.
#
# This is the recipe for blackjax: a `Metric` from a `DiagonalPlusLowRank`. Momenta have the
# precision for covariance, so they are draws of its *inverse's* `sample`; the kinetic energy is a
# `bilinear` form of the inverse. Each costs a product with the factors.


# %%
def metric_of(precision):
    """Blackjax's metric with that mass matrix."""
    inverse = precision.inverse()

    def kinetic_energy(momentum, position=None):
        return inverse.bilinear(momentum, momentum) / 2

    def check_turning(left, right, total, position_left=None, position_right=None):
        inner = total - (left + right) / 2
        return (inverse.bilinear(left, inner) <= 0) | (inverse.bilinear(right, inner) <= 0)

    def sample_momentum(key, position):
        return inverse.sample(key)

    return Metric(sample_momentum, kinetic_energy, check_turning, scale=None)  # NUTS scales nothing


WARMUP, DRAWS, DOUBLINGS = (50, 40, 6) if QUICK else (100, 400, 8)
nuts = blackjax.nuts.build_kernel()


def log_posterior(w):
    return -negative_log_posterior(w)


@jax.jit
def sample(precision, key):
    """Draws, their gradients and how many gradients each took: of the warm-up, and after it."""
    metric = metric_of(precision)
    start_size, adapt, final_size = dual_averaging_adaptation(0.8)

    def move(state, key, size):
        state, info = nuts(key, state, log_posterior, size, metric, max_num_doublings=DOUBLINGS)
        return state, info.acceptance_rate, info.num_integration_steps

    def warm(carry, key):
        state, adaptation = carry
        state, accepted, count = move(state, key, jnp.exp(adaptation.log_step_size))
        kept = state.position, state.logdensity_grad, count
        return (state, adapt(adaptation, accepted)), kept

    def draw(state, key):
        state, _, count = move(state, key, size)
        return state, (state.position, state.logdensity_grad, count)

    keys = jax.random.split(key, WARMUP + DRAWS)
    first = blackjax.nuts.init(mode, log_posterior), start_size(0.1)
    (state, adaptation), warmup = jax.lax.scan(warm, first, keys[:WARMUP])
    size = final_size(adaptation)
    return warmup, jax.lax.scan(draw, state, keys[WARMUP:])[1]


say(f"3. NUTS: {DRAWS} draws after {WARMUP} of warm-up, effective draws of the median weight")
nothing = lrj.SymmetricLowRank(np.zeros((40, DIM), np.float32), np.eye(40, dtype=np.float32))
key = jax.random.key(3)
warmup, after = sample(nothing.plus_diagonal(np.ones(DIM, np.float32)), key)
positions, slopes = (np.asarray(rows[-WARMUP // 2 :][-40::2]) for rows in warmup[:2])  # 20 draws
of_likelihood = lrj.centered(positions, -slopes - PRIOR * positions)
from_draws = lrj.fit(of_likelihood).positive_part()  # 40 factors
runs = {
    "identity": after,
    "variances of 20 draws": sample(nothing.plus_diagonal(1 / positions.var(axis=0)), key)[1],
    "fit to 20 draws, and the prior": sample(from_draws.plus_diagonal(PRIOR), key)[1],
    "Hessian at the mode, 49 gradients": sample(h.truncate(40).plus_diagonal(PRIOR), key)[1],
}
rates = {}
print(f"  {'mass matrix':36}{'gradients a draw':>18}{'effective draws':>17}{'per 1,000':>11}")
for name, (found, _, counts) in runs.items():
    effective = float(np.median(blackjax.diagnostics.effective_sample_size(found[None])))
    rates[name] = 1000 * effective / int(counts.sum())
    print(f"  {name:36}{counts.mean():18.1f}{effective:17.0f}{rates[name]:11.1f}")
identity, variances, ours, at_mode = rates.values()
assert ours > 2 * max(identity, variances)
assert QUICK or at_mode > ours > 2 * identity > variances

# %% [markdown]
# The fit to 20 draws gives several times the effective draws per gradient of the identity; the
# variances of the same draws, the usual warm-up, are too noisy to help. Where the mode is known,
# 49 gradients there are worth more still. (One chain each: another key moves these figures.)
#
# ## 4. 200 bootstraps in one vmap
#
# How would the weights scatter if the data were others? A bootstrap draws as many images, with
# replacement; an image counts as often as it is drawn. For each of them we take one Newton step
# from the mode, in a quadratic model of its own likelihood plus the prior, from the gradients at
# 66 points. Few gradients would not do: a Newton step divides by the small eigenvalues, which are
# found last. The closed form takes the same steps with the exact Hessians.

# %%
BOOTSTRAPS = 20 if QUICK else 200
cloud = mode + 0.01 * np.concatenate([np.zeros((1, DIM)), np.eye(DIM)]).astype(np.float32)
model_of = lrj.quadratic_model(negative_log_likelihood)


@jax.jit
@jax.vmap
def newton_step(counts):
    model = model_of(cloud, counts)
    slope = model.grad + PRIOR * model.center
    return model.center - model.hessian.positive_part().solve(slope, PRIOR) - mode


say(f"4. {BOOTSTRAPS} bootstraps")
resampled = np.random.default_rng(1).multinomial(len(X), np.full(len(X), 1 / len(X)), BOOTSTRAPS)
drawn = resampled.astype(np.float32)
steps = np.asarray(newton_step(drawn), float)


def closed_form_step(counts):
    p = 1 / (1 + np.exp(-(X.astype(float) @ mode)))
    slope = X.T @ (counts * (p - odd)) + PRIOR * mode
    return -np.linalg.solve(exact_hessian(mode, counts) + np.diag(PRIOR), slope)


closed = np.array([closed_form_step(counts) for counts in drawn])
off = np.linalg.norm(steps - closed, axis=1) / np.linalg.norm(closed, axis=1)
scatter = steps.std(axis=0)
laplace = np.sqrt(np.diag(np.linalg.inv(exact + np.diag(PRIOR))))
agreement = np.corrcoef(scatter, closed.std(axis=0))[0, 1]
print(
    f"  steps off from the closed form by {np.median(off):.4f} (median), {off.max():.4f} at worst"
)
print(f"  scatter of the 65 weights: correlation with that of the closed form {agreement:.4f}")
print(f"  scatter over Laplace's standard deviation: {np.median(scatter / laplace):.2f} (median)")
assert off.max() < 0.02
assert agreement > 0.99
assert np.median(scatter / laplace) < 1

# %% [markdown]
# The scatter is smaller than Laplace's standard deviation, as it should be: the prior holds the
# weights and does not vary, most of all those that the data say little of.
#
# ## What it looks like

# %%
figure, axes = notebook.panels("abc", (19, 5.5))
left = axes["a"]
numbers = [count + 1 for count in COUNTS]
low, high, bars = np.array([brackets[count] for count in COUNTS]).T
left.plot(numbers, high, "o-", color=BLUE, lw=2.5, ms=8, label="of $H_r$ alone")
left.errorbar(
    numbers, low, bars, fmt="o-", color=RED, lw=2.5, ms=8, capsize=5, label="with its correction"
)
left.axhline(sampled, color="k", lw=1.5, ls="--", label="importance sampling")
left.set(xlabel="gradients", ylabel="logarithm of the evidence", xticks=numbers)
left.legend(loc="lower right")
left.set_title("a. The evidence lies between two estimates")

middle = axes["b"]
middle.barh(list(rates), list(rates.values()), color=[GREY, GREY, RED, BLUE], height=0.6)
for place, rate in enumerate(rates.values()):
    middle.text(rate, place, f" {rate:.0f}", va="center")
middle.invert_yaxis()
middle.set_xlim(0, 1.15 * max(rates.values()))
middle.set_yticks(range(4), [name.replace(", ", ",\n").replace(" of ", "\nof ") for name in rates])
middle.set_xlabel("effective draws per 1,000 gradients")
middle.set_title("b. NUTS with four mass matrices")

right = axes["c"]
limit = 1.05 * max(laplace[:64].max(), scatter.max())
right.plot([0, limit], [0, limit], color="#555555", lw=1)
right.plot(laplace[:64], scatter[:64], "o", color=RED, ms=7, alpha=0.7, label="a pixel's weight")
right.plot(laplace[:64], closed.std(axis=0)[:64], "k_", ms=8, label="closed form")
right.set(xlabel="Laplace's standard deviation", ylabel="scatter of the bootstraps")
right.legend(loc="upper left")
right.set_title(f"c. {BOOTSTRAPS} bootstraps")
notebook.save(figure, "posterior.png")

# %% [markdown]
# ## Limits
#
# * **The bracket is one in expectation**, to first order, and as good as its error bar: with few
#   gradients it is wide. It needs exact products, or central differences, at the mode.
# * **20 draws of a warm-up are not independent**, nor from the posterior yet. The prior in the mass
#   matrix is what keeps it positive definite; without one, choose a diagonal of your own.
# * **One Newton step is not the mode of a bootstrap**, only near it where the data are many.
# * Of 65 weights all this could be done with matrices. It costs the same per gradient with 65,000.
