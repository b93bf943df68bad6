"""Airflow hooks for Halo."""
