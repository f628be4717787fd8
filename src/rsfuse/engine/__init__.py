"""Training and weights, the same for every task: configurations, the loop, model bundles."""
