"""What Upstash, the network and clients can do wrong, and what comes of it."""
