# %% [markdown]
# # Curvature from gradients: why not `jax.hessian`?
# `H v` is how the gradient changes along v, so two gradients measure it: `g(x + s) - g(x) ~ H s`.
# `lowrank_jax` solves such equations for a symmetric operator `H_r` of low rank. `jax.hessian` is
# exact, but wants a second derivative and D x D numbers. Four cases where that is out of reach:

# %%
import sys
from pathlib import Path

sys.path += map(str, Path(globals().get("__file__", "here")).resolve().parents)  # for benchmarks/

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_jax as lrj
from benchmarks import notebook, problems

key, cases, random = jax.random.key(0), [], np.random.default_rng(0)


def relative_error(a, b):
    return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)


# %% [markdown]
# **1. A gradient and no more**: a chain of 600 beads simulated in NumPy, which JAX cannot trace.

# %%
chain, moved = problems.bead_chain(600)
chain_hessian = lrj.lowrank_hessian_from_gradient(chain.gradient, 4, passes=5)(moved, key=key)
chain_exact = notebook.by_magnitude(np.linalg.eigvalsh(chain.hessian(moved)))
chain_off = np.abs(chain_hessian.eigenvalues()[:5] / chain_exact[:5] - 1).max()
cases.append(("NumPy simulator: 5 eigenvalues", "cannot trace it", chain_off, "closed form"))

# %% [markdown]
# **2. A million parameters.** The eigenvalues and their error bars come from the same 21 gradients,
# and from those that found the length of the steps.

# %%
width = 64 if notebook.QUICK else 968
net = problems.mlp_point((64, width, width, 10), steps=0, count=200)
hessian_at = lrj.lowrank_hessian(net.loss, 4, passes=5, return_pairs=True)
h, pairs = hessian_at(net.x, *net.data, key=key)
exact_pairs = lrj.probe_pairs(lrj.hvp(net.loss), 4, passes=6)(net.x, *net.data, key=key)
net_exact = lrj.ritz_pairs(exact_pairs)
net_off = np.abs(lrj.ritz_pairs(pairs).values[:3] / net_exact.values[:3] - 1).max()
case, size = f"{len(net.x):,} parameters: 3 eigenvalues", f"{4e-9 * len(net.x) ** 2:,.1f} GB"
cases.append((case, size, net_off, "exact products"))

# %% [markdown]
# **3. Points and gradients that are there already**: 40 draws of a sampler in 31 dimensions, with
# their gradients. The usual way to use them is the inverse of their sample covariance.

# %%
features = random.normal(size=(200, 31)) * np.geomspace(1, 10, 31)
precision = features.T @ features / 100 + np.eye(31)
draws = random.multivariate_normal(np.zeros(31), np.linalg.inv(precision), 40)
draws_off = relative_error(lrj.fit(lrj.centered(draws, draws @ precision)).to_dense(), precision)
by_covariance = relative_error(np.linalg.inv(np.cov(draws.T)), precision)
cases.append(("40 draws in 31 dimensions", "has no function", draws_off, "closed form"))

# %% [markdown]
# **4. Thousands of clouds at once**: 4,096 swarms of 9 points in 64 dimensions, of a loss
# `sum_k log cosh(w_k . x)` that bends in 6 directions. All of the library works under `jax.vmap`.

# %%
w = random.normal(size=(6, 64)).astype(np.float32) / 8
swarms = random.normal(size=(4096, 1, 64)) + 0.01 * random.normal(size=(4096, 9, 64))
slopes = np.tanh(swarms @ w.T) @ w
hessians = jax.vmap(lambda x, g: lrj.fit(lrj.centered(x, g)).to_dense())(swarms, slopes)
truth = np.einsum("ck,ki,kj->cij", 1 - np.tanh(swarms.mean(axis=1) @ w.T) ** 2, w, w)
swarms_off = np.quantile(jax.vmap(relative_error)(hessians, truth), 0.95)
cases.append(("4,096 swarms: 95 % of them within", "has no function", swarms_off, "closed form"))
print(f"\n{'Hessian of':38}{'jax.hessian':>16}{'our error':>12}  against")
for case, why_not, off, against in cases:
    print(f"{case:38}{why_not:>16}{off:12.2g}  {against}")
print(f"(The inverse sample covariance of the 40 draws is off by {by_covariance:.1f}.)")
assert max(off for *_, off, _ in cases) < 0.03 < 1 < by_covariance

# %% [markdown]
# ## The check
# In 64 dimensions `jax.hessian` is exact and fast, so it can judge: the loss of an image in its
# pixels, from 17 gradients that measure 16 dimensions.

# %%
params, (images, labels) = problems.trained_mlp(), problems.digits()
pick, spread, draw = jax.random.split(jax.random.key(1), 3)
chosen = jax.random.choice(pick, len(images), (32 if notebook.QUICK else 256,), replace=False)
keys = jax.random.split(spread, len(chosen))
clouds = jax.vmap(problems.cloud)(keys, images[chosen])  # (n, 17, 64)


def errors(points, label, v):
    """Relative errors: of H_r, of the matrix of rank 16 nearest to H, of `H_r v`."""
    exact = jax.hessian(problems.image_loss)(points[0], label, params)
    h = lrj.secant_hessian(problems.image_loss, pairing=lrj.from_first)(points, label, params)
    best = lrj.SymmetricLowRank(jnp.eye(64), exact).truncate(16)
    of_matrices = [relative_error(a.to_dense(), exact) for a in (h, best)]
    return [*of_matrices, relative_error(h @ v, exact @ v)]


vectors = jax.random.normal(draw, (len(chosen), 64))
off = np.array(jax.jit(jax.vmap(errors))(clouds, labels[chosen], vectors))
print(f"\n{'relative error':16}{'H_r':>8}{'best of rank 16':>18}{'H_r v, random v':>18}")
for name, share in {"median": 0.5, "95 % within": 0.95, "all within": 1}.items():
    print("{:16}{:8.3f}{:18.3f}{:18.3f}".format(name, *np.quantile(off, share, axis=1)))

# %% [markdown]
# ## In one picture
# The million parameters: eigenvalues with error bars, and the loss in the plane of the first two.

# %%
figure, axes = notebook.panels("ab", (13, 5.5))
lrj.plot.spectrum(h.truncate(20), pairs, ax=axes["a"])
axes["a"].plot(range(1, 9), net_exact.values[:8], "k_", ms=14, label="exact products")
axes["a"].legend(loc="lower left")
lrj.plot.landscape(lambda x: net.loss(x, *net.data), net.x, h, ax=axes["b"])
notebook.save(figure, "quickstart.png")
