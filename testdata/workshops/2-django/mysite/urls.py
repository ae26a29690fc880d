"""The one page."""

from django.http import HttpResponse
from django.urls import path


def index(request):
    """Greets."""
    return HttpResponse("hello from a Django workshop\n")


urlpatterns = [path("", index)]
