"""Event streams in Kafka; needs the extra `kafka` (confluent-kafka), loaded on first use."""

from featurestore.adapters.kafka.streams import KafkaEventStream

__all__ = ["KafkaEventStream"]
