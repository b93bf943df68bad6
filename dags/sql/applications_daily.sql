-- The names are those that Submission.application reads. The window is half-open, so neighbouring runs share no row.
SELECT
    submission_id,
    applicant_id,
    contact_name AS applicant_name,
    contact_email,
    contact_role,
    company_id,
    company_name AS company,
    country,
    application_type AS type,
    use_case AS details
FROM applications
WHERE submitted_at >= :start AND submitted_at < :end
ORDER BY submitted_at, submission_id
