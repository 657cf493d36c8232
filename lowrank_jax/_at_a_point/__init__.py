"""The curvature of a function at one point, from its gradients or products there."""
