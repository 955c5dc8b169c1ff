"""Where the parts meet: one member, its loop, its threads and its peers."""
