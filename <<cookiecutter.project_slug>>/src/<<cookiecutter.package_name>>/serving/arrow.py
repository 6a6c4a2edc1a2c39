"""x"""
ARROW = "application/vnd.apache.arrow.stream"
