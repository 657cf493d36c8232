"""What training needs: directions from a trajectory's pairs, gradients over batches."""
