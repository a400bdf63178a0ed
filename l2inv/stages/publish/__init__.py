"""publish: bring each inversion to the portal, recording it in the metadata store exactly once; reopen and withdraw."""
