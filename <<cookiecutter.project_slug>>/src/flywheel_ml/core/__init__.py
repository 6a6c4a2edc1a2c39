"""What a row, a model and a project are: what every other part stands on."""
