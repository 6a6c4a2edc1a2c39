"""From split tables to a judged, sealed bundle, and to the registry."""
