"""What a cache will weigh, take and be worth, before it is built: `python -m cache_teacher plan`."""

from kdcache.forecast.forecast import forecast_cache as forecast_cache
