"""Where windows come from: the rows of the prediction log, its profiles, or a scored file."""
