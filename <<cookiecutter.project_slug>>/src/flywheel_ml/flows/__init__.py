"""When, where, with which retries: the flows that turn the parts, and all side effects outside a stage."""
