"""The pages in Airflow's UI: what became of every row, and what people decide about those that got stuck."""
