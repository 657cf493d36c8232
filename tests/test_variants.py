"""The same numbers with and without jit, of NumPy arrays and of arrays on a device."""

import chex
import jax
import numpy as np

import lowrank_jax as lrj
from tests import draws, reference


class Variants(chex.TestCase):
    """What `chex.all_variants` runs: jitted and not, arrays put on a device and not."""

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.s, self.a = rng.normal(size=(4, 12)), draws.symmetric(rng, 12)
        self.y, self.v = self.s @ self.a, rng.normal(size=12)
        self.truth = reference.fit(self.s, self.y, 2 / 3)

    @chex.all_variants(with_pmap=False)
    def test_fit_and_what_is_asked_of_it(self):
        def asked(s, y, v):
            h = lrj.fit((s, y))
            return h @ v, h.solve(v, 9.0), h.logdet(9.0), lrj.diagnose(h, (s, y)).secant_residual

        product, solution, logdet, residual = self.variant(asked)(self.s, self.y, self.v)
        shifted = self.truth + 9 * np.eye(12)
        np.testing.assert_allclose(product, self.truth @ self.v, rtol=1e-9)
        np.testing.assert_allclose(solution, np.linalg.solve(shifted, self.v), rtol=1e-9)
        np.testing.assert_allclose(logdet, np.linalg.slogdet(shifted)[1], rtol=1e-9)
        assert residual < 1e-12

    @chex.all_variants(with_pmap=False)
    def test_the_hessian_at_a_point(self):
        def at(x, key):
            return lrj.lowrank_from_product(lambda x, v: self.a @ v, 4, passes=3)(x, key=key)

        h = self.variant(at)(self.v, jax.random.key(0))
        assert reference.relative_error(h.to_dense(), self.a) < 1e-9
