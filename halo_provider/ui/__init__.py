"""The pages in Airflow's UI: the status of every row, and what people decide about rows that are not delivered."""
