"""What the shop sells."""

from __future__ import annotations

from django.db import models


class Product(models.Model):
    """A product, by the packet."""

    slug = models.SlugField(primary_key=True)
    name = models.CharField(max_length=80)
    price = models.DecimalField(max_digits=8, decimal_places=2)

    def __str__(self) -> str:
        return self.name
