"""Images and the stack."""
