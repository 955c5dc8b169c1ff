"""TLS of a member: connections, the files under them, and whose certificates are taken."""
