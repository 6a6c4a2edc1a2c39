"""What tests of a project use: rows of any contract, small bundles, servers of their own."""
