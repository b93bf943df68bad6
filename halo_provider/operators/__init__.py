"""Airflow operators for Halo."""
