"""Matrices of low rank that act on pytrees and are pytrees."""
