"""What everything else is computed with: checks, pytrees as tall matrices, small matrices."""
