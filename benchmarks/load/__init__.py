"""Load generators that cost little and believe no answer unseen."""
