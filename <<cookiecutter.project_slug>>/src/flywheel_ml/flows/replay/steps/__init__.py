"""The steps of a period: send, measure, decide, learn, promote."""
