"""Small helpers that know nothing of machine learning."""
