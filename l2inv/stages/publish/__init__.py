"""publish: tell the metadata store of each inversion exactly once; reopen and withdraw."""
