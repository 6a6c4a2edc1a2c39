"""The ML Test Score (Breck et al., 2017): 28 tests for production readiness, computed from verified evidence."""
