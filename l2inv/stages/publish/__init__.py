"""publish: publish each inversion, recorded in the metadata store exactly once; reopen and withdraw."""
