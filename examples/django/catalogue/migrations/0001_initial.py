"""The products' table, with three products in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import migrations, models

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor

PRODUCTS = {"tea": ("Tea", "4.00"), "coffee": ("Coffee", "6.50"), "cocoa": ("Cocoa", "5.00")}


def fill(apps: Apps, _: BaseDatabaseSchemaEditor) -> None:
    """Put the products on the shelf."""
    product = apps.get_model("catalogue", "Product")
    for slug, (name, price) in PRODUCTS.items():
        product.objects.create(slug=slug, name=name, price=price)


class Migration(migrations.Migration):
    """Make the table and fill it."""

    initial = True
    operations = (
        migrations.CreateModel(
            name="Product",
            fields=[
                ("slug", models.SlugField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=80)),
                ("price", models.DecimalField(decimal_places=2, max_digits=8)),
            ],
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
    )
