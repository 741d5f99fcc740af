"""Where the shop's views are found."""

from __future__ import annotations

from catalogue import views
from django.urls import path

urlpatterns = [
    path("", views.index),
    path("api/generate", views.generate),
    path("catalogue/<slug:slug>", views.ProductView.as_view()),
    path("cheapest", views.cheapest),
    path("login", views.log_in),
    path("account", views.account),
    path("logout", views.log_out),
]
