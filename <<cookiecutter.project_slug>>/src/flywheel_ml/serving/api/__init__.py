"""The routes of the API and what they take and give."""
