"""The protocols in which clients can request predictions."""
