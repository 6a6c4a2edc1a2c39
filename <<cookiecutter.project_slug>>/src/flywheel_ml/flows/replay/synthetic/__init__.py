"""The synthetic replay: a made-up stream with known faults, and how soon monitoring finds each."""
