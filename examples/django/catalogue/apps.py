"""The catalogue as a Django application; it purges pages when their products change."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.db import transaction
from django.db.models.signals import post_delete, post_save

from upstash_middleware.django import purge

if TYPE_CHECKING:
    from catalogue.models import Product


class CatalogueConfig(AppConfig):
    """Connects the signals."""

    name = "catalogue"

    def ready(self) -> None:
        """Listen to what is saved and deleted, in a view, the admin or a command alike."""
        product = self.get_model("Product")
        post_save.connect(purge_pages, sender=product)
        post_delete.connect(purge_pages, sender=product)


def purge_pages(instance: Product, **_: Any) -> None:
    """Purge what was made of the product, as soon as others can see the change."""
    tags = [f"product:{instance.slug}", "prices"]
    # Robust: if the purge fails, this is logged, and the pages stay stored until their ttl ends.
    transaction.on_commit(partial(purge, tags=tags), robust=True)
