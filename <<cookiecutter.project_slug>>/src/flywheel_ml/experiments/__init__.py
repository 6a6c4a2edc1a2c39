"""Statistics of experiments between two models: sequential tests, the decision of a canary, sample sizes."""
