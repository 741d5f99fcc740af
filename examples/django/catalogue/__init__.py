"""The catalogue: products, their pages, and an API that writes about them."""
