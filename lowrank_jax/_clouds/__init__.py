"""From points and their gradients to an operator, and how good it is."""
