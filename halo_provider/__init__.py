"""Apache Airflow provider for Halo: rows become tickets, in batches, each one accounted for."""

__version__ = "0.1.0"
