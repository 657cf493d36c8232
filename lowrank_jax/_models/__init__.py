"""What is built of rows, columns and curvature: quadratic models, CUR and cross approximations."""
