-- The names are those that Submission.cancellation reads. The window is half-open, so neighbouring runs share no row.
SELECT
    cancellation_id,
    customer_id,
    customer_name,
    customer_email,
    company_id,
    company_name,
    plan,
    contract_term,
    reason,
    mrr_lost,
    cancelled_at
FROM cancellations
WHERE cancelled_at >= :start AND cancelled_at < :end
ORDER BY cancelled_at, cancellation_id
