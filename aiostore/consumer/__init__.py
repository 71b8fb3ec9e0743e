"""Consumers: handlers that get every event at least once, each stream's in order, by one worker or many."""

from aiostore.consumer.consumer import Consumer
from aiostore.consumer.delivery import ConsumerStatistics, Delivery, Retry
from aiostore.consumer.parked import Parked

__all__ = ["Consumer", "ConsumerStatistics", "Delivery", "Parked", "Retry"]
