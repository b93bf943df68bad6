"""Airflow's notifications as Halo tickets."""
