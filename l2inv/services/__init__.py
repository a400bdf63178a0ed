"""What l2inv calls outside its database: the metadata store, the cluster, mounts, notifications."""
