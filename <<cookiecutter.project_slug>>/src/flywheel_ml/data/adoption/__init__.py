"""From any table to a project about it: read, profiled, proposed, put in place."""
