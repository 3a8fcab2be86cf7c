"""Celery workers and the dispatcher: they compute what `app` records."""
