"""What is measured: each scenario starts its clusters, checks what they answer, fills in cells."""
